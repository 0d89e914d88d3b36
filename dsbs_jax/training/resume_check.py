# SPDX-License-Identifier: Apache-2.0
"""Refuses to resume a run with settings that change what it computes."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import vocabularies
from dsbs_jax.data.prepared import store, tokens, views


def run_fingerprint(
  run: Any, source: tokens.Source, vocabulary: vocabularies.Vocabulary
) -> dict[str, Any]:
  """What may not change when a run resumes: model, data, optimizer and so on.

  Args:
    run: the settings, `train_config.TrainConfig`.
    source: where its tokens come from.
    vocabulary: the vocabulary that the source names.

  Returns:
    JSON values by name.
  """
  name = views.own_name(run.mixture_or_task_name)
  prepared = name and store.read(name.benchmark, source.data_dir)
  return {
    'model': dataclasses.asdict(run.model),
    'objective': dataclasses.asdict(run.objective),
    'task': run.mixture_or_task_name,
    'batch_size': run.batch_size,
    'optimizer': run.optimizer.__name__,
    'schedule': run.schedule.__name__,
    'learning_rate': run.learning_rate,
    'clip_norm': run.clip_norm,
    'paired': run.paired,
    'prefixes': source.prefixes,
    'data': prepared.fingerprint('train') if prepared else None,
    'seed': run.seed,
    'vocabulary': vocabulary.fingerprint,
  }


def check(
  saved: Mapping[str, Any], now: Mapping[str, Any], model_dir: str
) -> None:
  """Raises UserError if a resumed run would compute something else."""
  changed = [
    f'{name}: {saved.get(name)!r} -> {value!r}'
    for name, value in now.items()
    # As it comes back from JSON, where tuples are lists.
    if _decisive(saved.get(name)) != _decisive(json.loads(json.dumps(value)))
  ]
  if changed:
    raise contract.UserError(
      f'{model_dir} holds a run with other settings: {"; ".join(changed)}.'
      ' Restore the settings, or train in another MODEL_DIR.'
    )


def _decisive(fact: Any) -> Any:
  """A value without what only saves memory, and without terms that are off."""
  if isinstance(fact, dict):
    fact = {key: value for key, value in fact.items() if key != 'remat'}
    # Older runs name the term's weight otherwise, or not at all.
    weight = fact.pop('mi_weight', fact.pop('mutual_information', 0.0))
    if weight:
      fact['mi_weight'] = weight
  return fact
