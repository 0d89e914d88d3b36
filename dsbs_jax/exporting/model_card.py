# SPDX-License-Identifier: Apache-2.0
"""The README.md of an exported model, from the run's own files only.

What the files do not tell is "unknown". Texts from settings, data or paths are
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
from dsbs_jax.data.prepared import store, views
from dsbs_jax.runs import results, run_folder, run_metadata

CARD_FILE = 'README.md'
UNKNOWN = 'unknown'

_MARKUP = re.compile(r'([\\`*_{}\[\]()#+\-.!|~>])')
METHODS = {
  ('gt', 'finetune'): 'standard finetuning on human labels',
  ('llm', 'finetune'): "standard distillation: finetuning on the LLM's labels",
  ('gt', 'label'): 'the label task of distilling step-by-step, human labels',
  ('llm', 'label'): "the label task of distilling step-by-step, LLM's labels",
  (None, 'rationale'): 'the rationale task of distilling step-by-step alone',
  (None, 'verdict'): 'judging the rationales of distilling step-by-step alone',
  (
    None,
    'counterfactual',
  ): 'answering as given rationales say, wrong ones, too',
  ('gt', 'single'): 'single task: rationale, then human label, in one target',
  ('llm', 'single'): "single task: rationale, then the LLM's label, in one"
  ' target',
  ('gt', 'answer_first'): 'human label, then rationale, in one target',
  ('llm', 'answer_first'): "the LLM's label, then rationale, in one target",
  ('gt', 'dsbs'): 'distilling step-by-step (arXiv:2305.02301), human labels',
  ('llm', 'dsbs'): "distilling step-by-step (arXiv:2305.02301), the LLM's"
  ' labels',
}
_KINDS = {'t5': 'T5', 'gemma3': 'Gemma 3', 't5gemma2': 'T5Gemma 2'}
_HEAD = """\
---
library_name: {library}
license: unknown
tags:
- {kind}
- distilling-step-by-step
---
"""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """What was exported.

  Attributes:
    path: the checkpoint's folder.
    step: its step.
    config: its network.
    metadata: what its run was made of, {} if it is not of this project.
  """

  path: pathlib.Path
  step: int
  config: network.Config
  metadata: Mapping[str, Any]

  @property
  def task(self) -> contract.TaskName | None:
    """What it was trained on, None where that is unknown."""
    return views.own_name(self.metadata.get('task', ''))


def escape(text: Any) -> str:
  """A text as Markdown that shows it, on one line; None is unknown."""
  text = UNKNOWN if text is None else str(text)
  shown = ''.join(
    ' ' if unicodedata.category(char)[0] in 'CZ' else char for char in text
  )
  shown = shown.replace('&', '&amp;').replace('<', '&lt;')
  return _MARKUP.sub(r'\\\1', shown)


def write(
  out: str | pathlib.Path, exported: Checkpoint, *, library: str, usage: str
) -> None:
  """Writes README.md, and the run's config as training.gin.

  Args:
    out: the exported folder.
    exported: what it was exported from.
    library: who loads the folder, for model hubs.
    usage: Markdown that says how to load it.
  """
  out = pathlib.Path(out)
  run = exported.path.parent
  source = run_metadata.config_file(exported.path)
  macros = run_folder.read_macros(source) if source else {}
  if macros:
    (out / run_metadata.EXPORTED_CONFIG).write_text(
      source.read_text(encoding='utf-8')
    )
  family = getattr(exported.config, 'family', 't5')
  number = results.size_text(results.num_params(exported.config))
  size = f'{_KINDS[family]} of {number}'
  task = exported.metadata.get('task')
  sections = [
    _HEAD.format(library=library, kind=family)
    + (f'# {escape(task)}, {size}' if task else f'# {size}'),
    _table(('', ''), _facts(exported, macros)),
    '## Use\n\n' + usage.strip(),
    '## Results\n\n' + _results(run, exported.step),
    '## Intended use\n\n' + _intended(exported.task),
    '## Licence\n\nUnknown: a run does not record the licences of its data, its'
    ' teacher or the checkpoint that it started from, and all of them may bind'
    ' this model. Look them up before you pass it on.',
    '## Reproduce\n\n' + _reproduce(macros),
  ]
  text = '\n\n'.join(sections) + '\n'
  (out / CARD_FILE).write_text(text, encoding='utf-8')


def _facts(exported: Checkpoint, macros: Mapping[str, Any]) -> Iterator:
  """(name, value) pairs, values as Markdown."""
  metadata, config, name = exported.metadata, exported.config, exported.task
  data = prepared_data(exported, macros)
  yield 'Checkpoint', f'{escape(exported.path)}, step {exported.step:,}'
  yield 'Task', escape(metadata.get('task'))
  yield 'Method', METHODS[name.label_source, name.form] if name else UNKNOWN
  if name is not None and name.form == 'dsbs':
    alpha = metadata.get('objective', {}).get('alpha')
    yield 'alpha (weight of the label term)', escape(alpha)
    schedule = metadata.get('objective', {}).get('alpha_schedule')
    for view in ('verdict', 'counterfactual', 'contrast'):
      weight = metadata.get('objective', {}).get(f'{view}_weight')
      if weight:
        yield f'weight of the {view} task or term', escape(weight)
    if schedule:
      yield 'alpha over the run', escape(schedule)
  yield 'Data', _data_text(name, data)
  yield 'Teacher', _teacher_text(data)
  started = macros.get('INITIAL_CHECKPOINT_PATH', UNKNOWN)
  yield 'Started from', escape(started) if started else 'random parameters'
  yield 'Parameters', f'{results.num_params(config):,}'
  layers, activations = '', 'gated gelu'
  if isinstance(config, network.GemmaConfig):
    layers = f'{config.num_layers}'
    if config.has_encoder:
      layers += f' + {config.num_layers}'
  else:
    layers = f'{config.num_encoder_layers} + {config.num_decoder_layers}'
    activations = '/'.join(config.mlp_activations)
  yield (
    'Network',
    escape(
      f'width {config.emb_dim}, {config.num_heads} heads of {config.head_dim},'
      f' MLP {config.mlp_dim}, {layers} layers, {config.vocab_size} ids,'
      f' {activations}'
    ),
  )
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


def prepared_data(
  exported: Checkpoint, macros: Mapping[str, Any]
) -> store.Prepared | None:
  """The prepared data that the run trained on, None where it is gone.

  Args:
    exported: the checkpoint.
    macros: of the run's config.gin, for its DATA_DIR.
  """
  if exported.task is None:
    return None
  data = run_folder.prepared(exported.task.benchmark, macros.get('DATA_DIR'))
  trained_on = exported.metadata.get('data')
  return data if data and data.fingerprint('train') == trained_on else None


def _call(function: Mapping[str, Any] | str | None) -> str | None:
  """'adamw(beta1=0.9)' of a function's name and arguments."""
  if not isinstance(function, Mapping):
    return function  # of an older run, or unknown
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
  if models is None and data.metadata.get('completions') is None:
    # Datasets of earlier versions: completions in the published layout.
    models = dict.fromkeys(filter(None, [data.metadata.get('teacher')]))
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


def _table(head, rows) -> str:
  lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
  return '\n'.join([*lines, *('| ' + ' | '.join(row) + ' |' for row in rows)])


def _results(run: pathlib.Path, step: int) -> str:
  """What was measured at the exported, the best and the last step."""
  file = run / run_folder.METRICS_FILE
  if not file.is_file():
    return 'Unknown: there are no metrics beside the checkpoint.'
  trained, evaluated = run_folder.read_metrics(file)
  marks = {step: ['exported']}
  best = run_folder.best_step(evaluated)
  if best is not None:
    marks.setdefault(best, []).append('best on validation')
  last = run_folder.last_step(trained, evaluated)
  marks.setdefault(last, []).append('last')
  rows = [
    (
      f'{at:,}',
      ', '.join(names),
      escape(split),
      escape(metric),
      f'{value:.2f}' if isinstance(value, int | float) else escape(value),
    )
    for at, names in sorted(marks.items())
    for split in sorted(evaluated)
    for metric, value in sorted(evaluated[split].get(at, {}).items())
  ]
  if not rows:
    return 'Unknown: these steps were not evaluated.'
  return _table(('step', 'which', 'split', 'metric', 'value'), rows)


def _intended(name: contract.TaskName | None) -> str:
  if name is None:
    return 'Unknown: the checkpoint does not say what it was trained for.'
  answer = {
    'rationale': 'writes rationales',
    'verdict': 'says whether a rationale is right',
    'counterfactual': 'answers as a given rationale says',
    'single': 'writes a rationale and then its label',
    'answer_first': 'writes its label and then a rationale',
  }.get(name.form, 'answers with a label alone')
  return (
    f'It {answer}, for inputs as the benchmark {escape(name.benchmark)} renders'
    ' them. It was evaluated on nothing but what stands above.'
  )


def _reproduce(macros) -> str:
  if not macros:
    return 'Unknown: there is no config beside the checkpoint.'
  return (
    '`training.gin` holds every setting; paths in it are those of the machine'
    ' that trained.\n\n```sh\npython -m dsbs_jax.train'
    ' --gin_file=training.gin --gin.MODEL_DIR="\'runs/again\'"\n```'
  )
