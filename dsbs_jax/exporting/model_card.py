# SPDX-License-Identifier: Apache-2.0
"""The README.md of an exported model, from the run's own files only."""

import pathlib

from dsbs_jax import contract
from dsbs_jax.exporting import checkpoint_facts
from dsbs_jax.runs import results, run_folder, run_metadata

CARD_FILE = 'README.md'

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


def write(
  out: str | pathlib.Path,
  exported: checkpoint_facts.Checkpoint,
  *,
  library: str,
  usage: str,
) -> None:
  """Writes README.md, and the run's config as training.gin.

  Args:
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
    + (f'# {checkpoint_facts.escape(task)}, {size}' if task else f'# {size}'),
    _table(('', ''), checkpoint_facts.facts(exported, macros)),
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
      checkpoint_facts.escape(split),
      checkpoint_facts.escape(metric),
      f'{value:.2f}'
      if isinstance(value, int | float)
      else checkpoint_facts.escape(value),
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
  benchmark = checkpoint_facts.escape(name.benchmark)
  return (
    f'It {answer}, for inputs as the benchmark {benchmark} renders them. It was'
    ' evaluated on nothing but what stands above.'
  )


def _reproduce(macros) -> str:
  if not macros:
    return 'Unknown: there is no config beside the checkpoint.'
  return (
    '`training.gin` holds every setting; paths in it are those of the machine'
    ' that trained.\n\n```sh\npython -m dsbs_jax.train'
    ' --gin_file=training.gin --gin.MODEL_DIR="\'runs/again\'"\n```'
  )
