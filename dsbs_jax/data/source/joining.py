# SPDX-License-Identifier: Apache-2.0
"""One row and its completions -> one Example."""

import collections
import dataclasses
from collections.abc import Hashable, Sequence

from dsbs_jax.data import conclusions, parsing, soft_labels
from dsbs_jax.data.benchmark import Benchmark, Example, Parser, Rationale
from dsbs_jax.data.source import completions, rows

# Statuses beside the parsers' reasons and the problems of labels (rows.py).
PARSED = 'parsed'
NO_COMPLETION = 'no_completion'
FAILED = 'failed'
REPAIRED = 'repaired'
RATIONALIZED = 'rationalized'

Outcome = parsing.Parsed | parsing.Unparsed


def is_correct(
  benchmark: Benchmark, gt_label: str, llm_label: str
) -> bool | None:
  """Whether the metric counts a label as right; None if it has no accuracy."""
  scores = benchmark.metric([gt_label], [llm_label])
  return scores['accuracy'] == 100.0 if 'accuracy' in scores else None


def _parsed(outcomes: Sequence[Outcome]) -> list[parsing.Parsed]:
  return [o for o in outcomes if isinstance(o, parsing.Parsed)]


def _vote(benchmark: Benchmark, label: str) -> Hashable:
  """What a label counts as; one without a value (NaN) is like itself alone."""
  key = benchmark.vote(label) if benchmark.vote else label
  return key if key == key else label


def majority_vote(
  benchmark: Benchmark, outcomes: Sequence[Outcome]
) -> tuple[Outcome, int]:
  """The answer that most samples of a row give.

  Args:
    benchmark: whose `vote` says which labels are the same answer.
    outcomes: the parsed samples in order, at least one.

  Returns:
    The first sample with the winning label, and its number of votes. The
    earlier label wins a tie. Where no sample parses: the first, and 0.
  """
  ballots = _parsed(outcomes)
  if not ballots:
    return outcomes[0], 0
  keys = [_vote(benchmark, o.label) for o in ballots]
  winner, votes = collections.Counter(keys).most_common(1)[0]
  return ballots[keys.index(winner)], votes


def all_rationales(
  benchmark: Benchmark, said: Sequence[tuple[str, str]], example: Example
) -> tuple[Rationale, ...]:
  """What an example's `rationales` are.

  Args:
    said: rationale and label of each completion that has both.
  """
  if len(said) < 2:
    return ()
  winner = _vote(benchmark, example.llm_label)
  found = []
  for text, label in said:
    gt, llm = (
      conclusions.argues(
        benchmark, text, label=label, options=example.options, target=target
      )
      for target in (example.gt_label, example.llm_label)
    )
    agrees = _vote(benchmark, label) == winner
    found.append(Rationale(text, label, agrees=agrees, gt=gt, llm=llm))
  return tuple(found)


def join(
  benchmark: Benchmark,
  row: rows.Row,
  samples: Sequence[completions.Sample] | None,
  *,
  parse: Parser,
  rationalized: bool = False,
) -> Example:
  """Joins one row with its completions.

  Args:
    samples: its completions; () where there are none, None where a failure
      is recorded.
    rationalized: whether a completion that was given the human label replaces
      one whose label is wrong.

  Returns:
    The example. Nothing is filtered: what could not be parsed carries the
    parser's sentinels and a status other than 'parsed'.
  """
  plain = [s for s in samples or () if not s.wrong_label]
  asked = [s for s in plain if not s.hinted]
  free = [parse(s.text) for s in asked]
  hinted = [parse(s.text) for s in plain if s.hinted]
  reason = FAILED if samples is None else NO_COMPLETION
  result, votes = parsing.Unparsed(reason), 0
  if free:
    result, votes = majority_vote(benchmark, free)
  if isinstance(result, parsing.Unparsed):
    status = result.reason
  else:
    status = rows.label_problem(benchmark, row.fields, result.label) or PARSED
  correct = is_correct(benchmark, row.gt_label, result.label)
  offered = _parsed(free)
  if rationalized and not correct:
    right = [
      outcome
      for outcome in _parsed(hinted)
      if is_correct(benchmark, row.gt_label, outcome.label)
    ]
    if right:
      result, status, correct = right[0], RATIONALIZED, True
      offered = right
  taken = next(
    (s for s, outcome in zip(asked, free, strict=True) if outcome is result),
    completions.Sample(''),
  )
  example = Example(
    index=row.index,
    example_id=row.example_id,
    input=row.input,
    gt_label=row.gt_label,
    llm_label=result.label,
    rationale=result.rationale,
    status=status,
    correct=correct,
    votes=votes,
    samples=len(free),
    options=tuple(benchmark.options(row.fields)) if benchmark.options else (),
    verdict=taken.verdict.replace(parsing.UNREADABLE, ''),
    label_probs=soft_labels.distribution(
      taken.logprobs, result.label, benchmark.labels
    )
    or (),
  )
  said = [(outcome.rationale, outcome.label) for outcome in offered]
  return dataclasses.replace(
    example, rationales=all_rationales(benchmark, said, example)
  )
