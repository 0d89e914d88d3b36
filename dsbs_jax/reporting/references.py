# SPDX-License-Identifier: Apache-2.0
"""What a method must beat: the teacher, and the student before any training.

The teacher's answers are the LLM's labels in the prepared test split. The
untouched student is the checkpoint that runs start from: `dsbs eval START`
leaves a line in eval.jsonl, which is found below the folders of the report, in
START, and beside it. A line counts whose checkpoint is a run's
INITIAL_CHECKPOINT_PATH.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data.prepared import views
from dsbs_jax.data.remote import object_store
from dsbs_jax.data.source import joining
from dsbs_jax.inference import evaluate_checkpoint, evaluator
from dsbs_jax.reporting import comparison, predictions
from dsbs_jax.runs import results, run_folder

TEACHER, UNTOUCHED = 'teacher', 'untouched'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
  """A row of the tables that no run trained; accuracies in percent."""

  kind: str  # TEACHER or UNTOUCHED
  title: str
  benchmark: str
  start: str | None = None  # the checkpoint of an untouched student
  test: float | None = None
  validation: float | None = None
  # File with an untouched student's answers, if it is there.
  predictions: pathlib.Path | None = None
  step: int = 0  # of the start, as its folder's name says


def find(
  folders: Sequence[pathlib.Path], runs: Sequence[results.Run]
) -> list[Reference]:
  """The references of all benchmarks: untouched students, then teachers.

  The folders of the report are read at any depth.

  Raises:
    UserError: a line of an eval.jsonl is damaged.
  """
  names = sorted({run.coordinates.benchmark for run in runs})
  teachers = (_teacher(name, runs) for name in names)
  return [*_untouched(folders, runs), *filter(None, teachers)]


def start_of(run: results.Run) -> str | None:
  """The checkpoint that a run started from, None for random parameters."""
  path = run.macros.get('INITIAL_CHECKPOINT_PATH')
  return _absolute(path) if isinstance(path, str) and path else None


def beside(
  rows: Sequence[comparison.Row], references: Sequence[Reference]
) -> list[Reference]:
  """Those of the references that rows of one benchmark are compared with."""
  benchmarks = {row.coordinates.benchmark for row in rows}
  starts = {start_of(run) for row in rows for run in row.runs} | {None}
  return [
    r for r in references if r.benchmark in benchmarks and r.start in starts
  ]


def test_examples(
  runs: Iterable[results.Run],
) -> list[benchmark_lib.Example]:
  """The prepared test split of the first run that has one, [] without."""
  for run in runs:
    if run.data is not None and run_folder.TEST in run.data.splits:
      return list(run.data.examples(run_folder.TEST))
  return []


def is_answered(example: benchmark_lib.Example) -> bool:
  """Whether the LLM said anything of an example, readable or not."""
  return example.status != joining.NO_COMPLETION


def is_right(
  example: benchmark_lib.Example, metric: predictions.IsRight
) -> bool:
  """Whether the LLM, which answered, was right by itself: not with a hint."""
  is_hinted = example.status == joining.RATIONALIZED
  return not is_hinted and metric(example.gt_label, example.llm_label)


def _teacher(name: str, runs: Sequence[results.Run]) -> Reference | None:
  accuracies = {
    split: comparison.llm_accuracy(runs, name, split=split)
    for split in (run_folder.TEST, run_folder.VALIDATION)
  }
  if accuracies[run_folder.TEST] is None:
    return None
  title = 'Teacher (the LLM)'
  counts = comparison.split_counts(runs, name, run_folder.TEST)
  answered, rows = counts.get('answered'), counts.get('rows')
  if answered is not None and rows is not None and answered < rows:
    title += f', on the {answered:,} of {rows:,} test examples it answered'
  return Reference(kind=TEACHER, title=title, benchmark=name, **accuracies)


def _untouched(
  folders: Sequence[pathlib.Path], runs: Sequence[results.Run]
) -> list[Reference]:
  starts = dict.fromkeys(filter(None, map(start_of, runs)))
  found = {}
  for file in _score_files(folders, starts):
    for line in predictions.read_lines(
      file,
      number='step',
      texts=('checkpoint', 'task', 'split'),
      remedy='Remove the line, or evaluate again.',
    ):
      start = _matching(line['checkpoint'], starts)
      name = views.own_name(line['task'])
      if start is None or name is None:
        continue
      key = (start, line['task'], evaluate_checkpoint.how_decoded(line))
      scores, _, _ = found.get(key, ({}, None, 0))
      scores = {**scores, line['split']: line.get('accuracy')}
      found[key] = (scores, file.parent, line['step'])
  return [
    _of_start(key, scores, folder, step)
    for key, (scores, folder, step) in found.items()
  ]


def _of_start(
  key: tuple[str, str, str],
  scores: Mapping[str, float],
  folder: pathlib.Path,
  step: int,
) -> Reference:
  start, task, how = key
  file = evaluator.predictions_file(
    folder, task, run_folder.TEST, step=step, how=how
  )
  title = f'Untouched student, asked as in {task}'
  if how:
    title += f', {how.replace("chosen", "labels ranked").replace("-", ", ")}'
  return Reference(
    kind=UNTOUCHED,
    title=title,
    benchmark=views.own_name(task).benchmark,
    start=start,
    test=scores.get(run_folder.TEST),
    validation=scores.get(run_folder.VALIDATION),
    predictions=file if file.is_file() else None,
    step=step,
  )


def _score_files(
  folders: Sequence[pathlib.Path], starts: Iterable[str]
) -> list[pathlib.Path]:
  name = evaluate_checkpoint.SCORES_FILE
  local = [pathlib.Path(s) for s in starts if not object_store.is_bucket(s)]
  near = [place / name for s in local for place in (s, s.parent)]
  below = [f for folder in folders for f in run_folder.find(folder, name)]
  there = (file.absolute() for file in (*near, *below) if file.is_file())
  return list(dict.fromkeys(there))


def _matching(checkpoint: str, starts: Iterable[str]) -> str | None:
  """The start that a checkpoint is: the same folder, or the one in it."""
  given = _absolute(checkpoint)
  parent = given.rpartition('/')[0]
  return next((s for s in starts if s in (given, parent)), None)


def _absolute(path: str) -> str:
  if object_store.is_bucket(path):
    return path.rstrip('/')
  return str(pathlib.Path(path).expanduser().resolve())
