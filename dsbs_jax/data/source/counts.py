# SPDX-License-Identifier: Apache-2.0
"""What was found in a split: the numbers to look at before training."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import conclusions
from dsbs_jax.data.source import completions, joining, rows


@dataclasses.dataclass(frozen=True)
class Counts:
  """Counts of one split.

  Attributes:
    completions: texts that the LLM wrote for them, all samples.
    answered: rows with a completion.
    usable: answered rows whose rationale and label both have visible text.
    blank_rationales: answered rows without a rationale.
    blank_labels: answered rows without a label.
    outside_labels: rows whose label has text that is no answer of the
      benchmark: not in the closed set, not a choice, not arithmetic.
    correct: answered rows whose LLM label is right, hinted ones excluded.
    usable_correct: those of them that are usable.
    scored: answered rows for which the metric gives an accuracy.
    statuses: status -> rows; 'parsed' and the reasons of all others.
    kept: rows left after the rules of `filters`.
    dropped: reason -> rows that the rules dropped.
    torn: lines at the end of the completions that a kill had cut.
    models: who wrote the completions -> how many; '' where that is not said.
    argues: what `conclusions` finds, for or against the human label -> rows
      whose rationale, the one that is trained on by default, argues so; blank
      ones are left out.
    rationales: rationales that rows with several have to choose from, before
      the rules of `filters`.
    soft_labels: answered rows whose LLM told how likely each label is.
    counterfactuals: answered rows with a rationale that the LLM wrote for a
      wrong label.
    counterfactuals_asked: rows for which it was asked for one.
    verdicts: what the LLM said of completions, see `parsing.verdict` -> how
      often.
  """

  rows: int = 0
  completions: int = 0
  answered: int = 0
  usable: int = 0
  blank_rationales: int = 0
  blank_labels: int = 0
  outside_labels: int = 0
  correct: int = 0
  usable_correct: int = 0
  scored: int = 0
  statuses: Mapping[str, int] = dataclasses.field(default_factory=dict)
  kept: int = 0
  dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
  torn: int = 0
  models: Mapping[str, int] = dataclasses.field(default_factory=dict)
  argues: Mapping[str, int] = dataclasses.field(default_factory=dict)
  rationales: int = 0
  verdicts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  soft_labels: int = 0
  counterfactuals: int = 0
  counterfactuals_asked: int = 0

  @property
  def accuracy(self) -> float | None:
    """Percent of answered rows whose label is right, as parsed."""
    return 100.0 * self.correct / self.scored if self.scored else None

  @property
  def usable_accuracy(self) -> float | None:
    """The same among usable rows."""
    if not self.scored or not self.usable:
      return None
    return 100.0 * self.usable_correct / self.usable

  def to_dict(self) -> dict[str, Any]:
    """All counts and both accuracies as JSON-ready values."""
    return {
      **dataclasses.asdict(self),
      'accuracy': self.accuracy,
      'usable_accuracy': self.usable_accuracy,
    }


class CountsBuilder:
  """Adds up `Counts`, one example at a time."""

  def __init__(self, benchmark: benchmark_lib.Benchmark):
    self._benchmark = benchmark
    self._numbers = collections.Counter()
    self._by_name = collections.defaultdict(collections.Counter)

  def add(
    self,
    row: rows.Row,
    samples: Sequence[completions.Sample],
    example: benchmark_lib.Example,
  ) -> None:
    """Counts an example as it was joined from samples, before any rule.

    Args:
      samples: all completions of the row, those to a hint included.
    """
    add, add_name = self._numbers, self._by_name
    add_name['statuses'][example.status] += 1
    hinted = example.status == joining.RATIONALIZED
    add_name['models'].update(
      s.model for s in samples if not s.wrong_label and (hinted or not s.hinted)
    )
    add_name['verdicts'].update(s.verdict for s in samples if s.verdict)
    add['rows'] += 1
    if not example.samples:
      return
    label, rationale = example.llm_label.strip(), example.rationale.strip()
    correct = bool(example.correct) and not hinted
    problem = label and rows.label_problem(
      self._benchmark, row.fields, example.llm_label
    )
    add['completions'] += example.samples
    add['answered'] += 1
    add['usable'] += bool(label and rationale)
    add['blank_rationales'] += not rationale
    add['blank_labels'] += not label
    add['outside_labels'] += bool(problem)
    add['counterfactuals'] += bool(example.counterfactual)
    add['counterfactuals_asked'] += any(s.wrong_label for s in samples)
    add['soft_labels'] += bool(example.label_probs)
    add['scored'] += example.correct is not None
    add['correct'] += correct
    add['usable_correct'] += correct and bool(label and rationale)
    add['rationales'] += len(example.rationales)
    if rationale:
      argues = conclusions.argues(
        self._benchmark,
        example.rationale,
        label=example.llm_label,
        options=example.options,
        target=example.gt_label,
      )
      add_name['argues'][argues] += 1

  def add_outcome(self, result: benchmark_lib.Example | str) -> None:
    """Counts what the rules made of an example: kept, or the reason."""
    if isinstance(result, str):
      self._by_name['dropped'][result] += 1
    else:
      self._numbers['kept'] += 1

  def counts(self, *, torn: int = 0) -> Counts:
    """The counts so far."""
    by_name = {
      field: dict(names.most_common()) for field, names in self._by_name.items()
    }
    return Counts(**self._numbers, **by_name, torn=torn)
