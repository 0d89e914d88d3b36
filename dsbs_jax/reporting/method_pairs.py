# SPDX-License-Identifier: Apache-2.0
"""Any two methods of a benchmark, compared on the same test examples.

A method is a row of the tables: a setting with its seeds, or a reference, whose
one set of answers stands beside every seed of the other. Answers are those of
the chosen step, so that differences are those of the tables.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.reporting import (
  comparison,
  paired_tests,
  predictions,
  references,
  tables,
)
from dsbs_jax.runs import run_names

# Index of an example -> whether the answer is right.
Answers = Mapping[int, bool]
_ANY_SEED = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """Something that answers the test examples: a setting, or a reference."""

  title: str  # as in the tables
  where: str = ''  # model and share of the data, or a reference's start
  coordinates: run_names.Coordinates | None = None  # of a setting
  kind: str = ''  # of a reference
  # Seed -> accuracy in percent, as it was logged.
  accuracies: Mapping[int, float] = dataclasses.field(default_factory=dict)
  # Seed -> answers, for seeds whose predictions are there.
  answers: Mapping[int, Answers] = dataclasses.field(default_factory=dict)
  # The answers that the browser of examples shows, and whose they are.
  shown: Answers = dataclasses.field(default_factory=dict)
  shown_name: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """Two methods compared; differences are in points, first minus second."""

  over_seeds: paired_tests.Difference | None  # None without a common seed
  # By example, each the mean over seeds; None without predictions.
  over_examples: paired_tests.Difference | None
  only_first: int  # test examples that it alone has right, as shown
  only_second: int
  num_shown: int  # test examples that both answered, as shown

  def reversed(self) -> Self:
    """The second compared with the first."""
    return dataclasses.replace(
      self,
      over_seeds=self.over_seeds and self.over_seeds.negated(),
      over_examples=self.over_examples and self.over_examples.negated(),
      only_first=self.only_second,
      only_second=self.only_first,
    )


@dataclasses.dataclass(frozen=True)
class Compared:
  """The methods of a benchmark, and every two of them compared."""

  methods: Sequence[Method]  # settings, untouched students, the teacher
  # (i, j) with i < j -> the i-th method compared with the j-th.
  pairs: Mapping[tuple[int, int], Pair]
  untouched: Sequence[references.Reference]  # of these untouched students
  questions: predictions.Questions

  def pair(self, first: Method, second: Method) -> Pair:
    """Two of `methods`, in any order."""
    i, j = self.methods.index(first), self.methods.index(second)
    return self.pairs[i, j] if i < j else self.pairs[j, i].reversed()

  def to_json(self) -> dict[str, Any]:
    """As compare.js reads it; a method of the teacher has no student."""
    methods = [
      {
        'title': method.title,
        'where': method.where,
        'shown': method.shown_name,
        'student': None if method.kind == references.TEACHER else number,
      }
      for number, method in enumerate(self.methods)
    ]
    pairs = [
      {'first': i, 'second': j, **dataclasses.asdict(pair)}
      for (i, j), pair in self.pairs.items()
    ]
    return {'methods': methods, 'pairs': pairs}


def of_row(
  row: comparison.Row,
  is_right: predictions.IsRight,
  questions: predictions.Questions,
) -> Method:
  """A setting as a method; reads its predictions."""
  point, first = row.coordinates, row.runs[0]
  answers = {
    run.coordinates.seed: questions.right(file, is_right)
    for run in row.runs
    if (file := predictions.labels_at(run, run.chosen_step))
  }
  step = predictions.shown_step(first)
  shown_file = predictions.shown_labels(first)
  shown = answers.get(first.coordinates.seed) or (
    questions.right(shown_file, is_right) if shown_file else {}
  )
  share = tables.percent(point.fraction)
  return Method(
    title=point.title,
    where=f'{point.model}, {share} of the data',
    coordinates=point,
    accuracies=comparison.by_seed(row),
    answers=answers,
    shown=shown,
    shown_name=f'seed {first.coordinates.seed}, step {step:,}',
  )


def _of_teacher(
  reference: references.Reference,
  examples: Sequence[benchmark_lib.Example],
  is_right: predictions.IsRight,
  questions: predictions.Questions,
) -> Method:
  """The teacher as a method; examples: the test split, which has its labels."""
  answers = {
    example.index: references.is_right(example, is_right)
    for example in examples
    if references.is_answered(example)
    and questions.is_same(example.index, example.input)
  }
  # An accuracy on some of the examples compares with no other.
  is_whole = len(answers) == len(examples)
  return _of_reference(reference, answers, is_known=is_whole)


def _of_reference(
  reference: references.Reference, answers: Answers, *, is_known: bool = True
) -> Method:
  known = is_known and reference.test is not None
  return Method(
    title=reference.title,
    where=reference.start or '',
    kind=reference.kind,
    accuracies={_ANY_SEED: reference.test} if known else {},
    answers={_ANY_SEED: answers} if answers else {},
    shown=answers,
  )


def of_benchmark(
  name: str,
  rows: Sequence[comparison.Row],
  found: Sequence[references.Reference],
) -> Compared:
  """All comparisons of a benchmark, of its rows and what is beside them."""
  runs = [row.runs[0] for row in rows]
  is_right, _ = predictions.label_metric(name, runs)
  beside = references.beside(rows, found)
  untouched = [r for r in beside if r.predictions is not None]
  teachers = [r for r in beside if r.kind == references.TEACHER]
  examples = references.test_examples(runs) if teachers else []
  questions = predictions.Questions()
  methods = [
    *(of_row(row, is_right, questions) for row in rows),
    *(
      _of_reference(each, questions.right(each.predictions, is_right))
      for each in untouched
    ),
    *(_of_teacher(t, examples, is_right, questions) for t in teachers),
  ]
  pairs = {
    (i, j): compare(first, second)
    for (i, first), (j, second) in itertools.combinations(enumerate(methods), 2)
  }
  return Compared(tuple(methods), pairs, tuple(untouched), questions)


def compare(first: Method, second: Method) -> Pair:
  """Compares two methods of one benchmark.

  Where both have predictions, both tests are of them; otherwise the test over
  seeds is of the logged accuracies, and there is none over examples.
  """
  common = _common(first.answers, second.answers)
  by_example = _by_example([(a, b) for _, a, b in common])
  if by_example is not None:
    by_seed = list(100.0 * by_example.mean(axis=1))
  elif common:  # they were asked other questions
    by_seed = []
  else:
    common = _common(first.accuracies, second.accuracies)
    by_seed = [a - b for _, a, b in common]
  is_by_seed = by_seed and common[0][0] != _ANY_SEED
  both = first.shown.keys() & second.shown.keys()
  only = [first.shown[index] - second.shown[index] for index in both]
  return Pair(
    over_seeds=paired_tests.over_seeds(by_seed) if is_by_seed else None,
    over_examples=None
    if by_example is None
    else paired_tests.over_examples(100.0 * by_example.mean(axis=0)),
    only_first=only.count(1),
    only_second=only.count(-1),
    num_shown=len(both),
  )


def _common(first: Mapping, second: Mapping) -> list[tuple]:
  """(seed, value, value) of the seeds of both; a reference has every seed."""
  if _ANY_SEED in first and _ANY_SEED not in second:
    first = dict.fromkeys(second, first[_ANY_SEED])
  elif _ANY_SEED in second and _ANY_SEED not in first:
    second = dict.fromkeys(first, second[_ANY_SEED])
  seeds = sorted(set(first) & set(second))
  return [(seed, first[seed], second[seed]) for seed in seeds]


def _by_example(pairs: Sequence[tuple[Answers, Answers]]) -> np.ndarray | None:
  """Right minus right [seeds, N], of the examples that all of them answered."""
  if not pairs:
    return None
  answers = [set(a) & set(b) for a, b in pairs]
  indices = sorted(set.intersection(*answers))
  if not indices:
    return None
  return np.array([[int(a[i]) - int(b[i]) for i in indices] for a, b in pairs])
