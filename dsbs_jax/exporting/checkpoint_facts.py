# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's run tells of it: the facts of the model card.

What its files do not tell is "unknown". Texts from settings, data or paths are
escaped, so that they cannot become markup.
"""

import dataclasses
import pathlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.data import task_forms
from dsbs_jax.data.prepared import store, views
from dsbs_jax.runs import results, run_folder, run_metadata

UNKNOWN = 'unknown'

_MARKUP = re.compile(r'([\\`*_{}\[\]()#+\-.!|~>])')
# What a form's task is, for {label}s: those of humans, or of the LLM.
METHODS = {
  'finetune': 'finetuning on {label}s',
  'label': 'the label task of distilling step-by-step, {label}s',
  'rationale': 'the rationale task of distilling step-by-step alone',
  'verdict': 'judging the rationales of distilling step-by-step alone',
  'counterfactual': 'answering as given rationales say, wrong ones, too',
  'single': 'single task: rationale, then {label}, in one target',
  'answer_first': '{label}, then rationale, in one target',
  'dsbs': 'distilling step-by-step (arXiv:2305.02301), {label}s',
}
_LABELS = {'gt': 'human label', 'llm': "the LLM's label"}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """What was exported; metadata is {} where no run of this project made it."""

  path: pathlib.Path
  step: int
  config: network.Config
  metadata: Mapping[str, Any]

  @property
  def task(self) -> contract.TaskName | None:
    """What it was trained on, None where that is unknown."""
    return views.own_name(self.metadata.get('task', ''))

  @property
  def answered_task(self) -> contract.TaskName | None:
    """The task whose labels it answers with, None where that is unknown."""
    if self.task is None:
      return None
    form = 'label' if self.task.form == 'dsbs' else self.task.form
    return dataclasses.replace(self.task, form=form)

  @property
  def prefix(self) -> str:
    """What stands before the inputs of that task, '' where it is unknown."""
    if self.task is None:
      return ''
    prefixes = task_forms.prefixes(self.metadata.get('prefixes') or 'paper')
    return prefixes.of(self.answered_task.form)

  @property
  def max_decode_len(self) -> int:
    """Tokens of an output at most, as the run decodes."""
    macros = run_metadata.macros(self.path)
    return macros.get('MAX_DECODE_LEN', 64)  # where no run says it


def escape(text: Any) -> str:
  """A text as Markdown that shows it, on one line; None is unknown."""
  text = UNKNOWN if text is None else str(text)
  shown = ''.join(
    ' ' if unicodedata.category(char)[0] in 'CZ' else char for char in text
  )
  shown = shown.replace('&', '&amp;').replace('<', '&lt;')
  return _MARKUP.sub(r'\\\1', shown)


def facts(
  exported: Checkpoint, macros: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
  """(name, value) pairs, values as Markdown."""
  metadata, name = exported.metadata, exported.task
  data = prepared_data(exported, macros)
  yield 'Checkpoint', f'{escape(exported.path)}, step {exported.step:,}'
  yield 'Task', escape(metadata.get('task'))
  yield 'Method', _method(name) if name else UNKNOWN
  if name is not None and name.form == 'dsbs':
    yield from _objective(metadata.get('objective', {}))
  yield 'Data', _data_text(name, data)
  yield 'Teacher', _teacher_text(data)
  started = macros.get('INITIAL_CHECKPOINT_PATH', UNKNOWN)
  yield 'Started from', escape(started) if started else 'random parameters'
  yield 'Parameters', f'{results.num_params(exported.config):,}'
  yield 'Network', escape(_network(exported.config))
  recipe = {
    'optimizer': _call(metadata.get('optimizer')),
    'schedule': _call(metadata.get('schedule')),
    'learning rate': metadata.get('learning_rate'),
    'batch': metadata.get('batch_size'),
    'clipping': metadata.get('clip_norm'),
    'steps': macros.get('TRAIN_STEPS'),
    'seed': metadata.get('seed'),
  }
  if lora := metadata.get('lora'):
    recipe['LoRA'] = f'rank {lora["rank"]}, alpha {lora["alpha"]}, merged'
  yield 'Recipe', escape(_pairs(recipe if 'optimizer' in metadata else {}))
  yield 'Vocabulary', escape(metadata.get('vocabulary'))
  yield 'Versions', escape(_pairs(metadata.get('versions')))


def _method(name: contract.TaskName) -> str:
  if (name.label_source, name.form) == ('llm', 'finetune'):
    return "standard distillation: finetuning on the LLM's labels"
  standard = 'standard ' if name.form == 'finetune' else ''
  label = _LABELS.get(name.label_source)
  return standard + METHODS[name.form].format(label=label)


def _objective(values: Mapping[str, Any]) -> Iterator:
  yield 'alpha (weight of the label term)', escape(values.get('alpha'))
  for view in ('verdict', 'counterfactual', 'contrast'):
    if weight := values.get(f'{view}_weight'):
      yield f'weight of the {view} task or term', escape(weight)
  if schedule := values.get('alpha_schedule'):
    yield 'alpha over the run', escape(schedule)


def _network(config: network.Config) -> str:
  if isinstance(config, network.GemmaConfig):
    layers, activations = str(config.num_layers), 'gated gelu'
    if config.has_encoder:
      layers += f' + {config.num_layers}'
  else:
    layers = f'{config.num_encoder_layers} + {config.num_decoder_layers}'
    activations = '/'.join(config.mlp_activations)
  return (
    f'width {config.emb_dim}, {config.num_heads} heads of {config.head_dim},'
    f' MLP {config.mlp_dim}, {layers} layers, {config.vocab_size} ids,'
    f' {activations}'
  )


def prepared_data(
  exported: Checkpoint, macros: Mapping[str, Any]
) -> store.Prepared | None:
  """The prepared data that the run trained on, None where it is gone."""
  if exported.task is None:
    return None
  data = run_folder.prepared(exported.task.benchmark, macros.get('DATA_DIR'))
  trained_on = exported.metadata.get('data')
  return data if data and data.fingerprint('train') == trained_on else None


def _call(function: Mapping[str, Any] | None) -> str | None:
  """'adamw(beta1=0.9)' of a function's name and arguments."""
  if function is None:
    return None
  arguments = (f'{k}={v}' for k, v in function.items() if k != 'name')
  return f'{function["name"]}({", ".join(arguments)})'


def _pairs(values: Mapping[str, Any] | None) -> str | None:
  """'name value, name value'; None where nothing is known."""
  pairs = (
    f'{name} {UNKNOWN if value is None else value}'
    for name, value in (values or {}).items()
  )
  return ', '.join(pairs) or None


def _data_text(name, data) -> str:
  if name is None:
    return UNKNOWN
  text = f'benchmark {escape(name.benchmark)}'
  if data is None:
    return f'{text}; counts unknown: the prepared data is not there any more'
  counts = ', '.join(f'{s} {data.num_examples(s):,}' for s in data.splits)
  fraction = data.metadata.get('fraction')
  return f'{text}; examples: {counts}; share of train: {escape(fraction)}'


def _teacher_text(data) -> str:
  if data is None:
    return UNKNOWN
  splits = data.metadata['splits']
  test, train = (splits.get(s, {}).get('counts', {}) for s in ('test', 'train'))
  models = train.get('models')
  names = [
    (escape(model) if model else 'an unnamed model')
    + (f' ({count:,} completions)' if len(models) > 1 else '')
    for model, count in (models or {}).items()
  ]
  if not names:
    return UNKNOWN if models is None else 'none: no completions'
  accuracy = test.get('accuracy')
  same = set(test.get('models') or models) == set(models)
  if isinstance(accuracy, int | float) and same:
    names[-1] += f'; its own accuracy on test {accuracy:.2f} %'
  return ', '.join(names)
