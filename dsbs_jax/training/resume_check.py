# SPDX-License-Identifier: Apache-2.0
"""Refuses to resume a run with settings that change what it computes."""

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import traverse_util

from dsbs_jax import contract
from dsbs_jax.data.prepared import rationale_rules, store, tokens, views
from dsbs_jax.data.vocabulary import vocabularies


def run_fingerprint(
  run: Any, source: tokens.Source, vocabulary: vocabularies.Vocabulary
) -> dict[str, Any]:
  """What may not change when a run resumes: model, data, optimizer and so on.

  JSON values by name, of a `train_config.TrainConfig`, and of the tokens'
  source and its vocabulary.
  """
  name = views.own_name(run.mixture_or_task_name)
  prepared = name and store.read(name.benchmark, source.data_dir)
  chosen_from = None
  if prepared and run.rationale_choice != rationale_rules.FIRST:
    chosen_from = prepared.rationales_fingerprint('train')
  return {
    'model': dataclasses.asdict(run.model),
    'lora': dataclasses.asdict(run.lora) if run.lora.rank else None,
    'objective': dataclasses.asdict(run.objective),
    'task': run.mixture_or_task_name,
    'batch_size': run.batch_size,
    'optimizer': _arguments(run.optimizer, 'clip_norm'),
    'schedule': _arguments(run.schedule, 'total_steps'),
    'train_steps': run.train_steps if run.depends_on_train_steps() else None,
    'learning_rate': run.learning_rate,
    'clip_norm': run.clip_norm,
    'initial_checkpoint_path': run.initial_checkpoint_path,
    'paired': run.paired,
    'cut_at': run.lengths if run.layout().truncate else None,
    'rationale_choice': [run.rationale_choice, chosen_from],
    'prefixes': source.prefixes,
    'data': prepared.fingerprint('train') if prepared else None,
    'seed': run.seed,
    'vocabulary': vocabulary.fingerprint,
    'matmul_precision': jax.config.jax_default_matmul_precision,
    'prng_impl': jax.config.jax_default_prng_impl,
  }


def check(
  saved: Mapping[str, Any], now: Mapping[str, Any], run: Any, *, step: int
) -> None:
  """Raises UserError if a resumed run would compute something else.

  Args:
    saved: what its newest checkpoint says of it.
    now: its `run_fingerprint`.
    run: the settings, `train_config.TrainConfig`.
    step: of the newest checkpoint.
  """
  if step > run.train_steps:
    raise contract.UserError(
      f'TRAIN_STEPS is {run.train_steps:,}, but {run.model_dir} holds a run of'
      f' {step:,} steps already. Set it to as many, or train in another'
      ' MODEL_DIR.'
    )
  before, after = _flat(saved), _flat(now)
  changed = [
    f'{name}: {before.get(name)!r} -> {after.get(name)!r}'
    for name in sorted({*before, *after})
    if before.get(name) != after.get(name)
    # What else a checkpoint says, such as versions, may change.
    and name.partition('.')[0] in now
  ]
  if changed:
    raise contract.UserError(
      f'{run.model_dir} holds a run with other settings: {"; ".join(changed)}.'
      " Restore the settings, or train in another MODEL_DIR, from this run's"
      ' parameters by INITIAL_CHECKPOINT_PATH if it shall go on.'
    )


def _arguments(function: Callable, *given: str) -> dict[str, Any]:
  """A function's name and its keyword-only arguments, without those given."""
  named = inspect.signature(function).parameters.values()
  return {'name': function.__name__} | {
    argument.name: argument.default
    if isinstance(argument.default, bool | int | float | str | None)
    else repr(argument.default)
    for argument in named
    if argument.kind is argument.KEYWORD_ONLY and argument.name not in given
  }


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
  """'model.emb_dim' -> value and so on, without what only saves memory."""
  # As it comes back from JSON, where tuples are lists.
  facts = json.loads(json.dumps(facts))
  flat = traverse_util.flatten_dict(facts, sep='.')
  flat.pop('model.remat', None)
  return flat
