# SPDX-License-Identifier: Apache-2.0
"""Which training rationales are kept. The paper keeps all of them.

A rule takes an example and gives it back, perhaps repaired, or gives the
reason to drop it. Rules apply to train only: validation and test stay whole.
A row's one answer decides whether it stays; of several rationales of a row
that stays, those remain which the rule would keep.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import conclusions, parsing
from dsbs_jax.data.benchmark import Benchmark, Example, Rationale
from dsbs_jax.data.source import counterfactuals, joining, rows

# Every rule below takes the benchmark, a row and the example that it was joined
# to, and returns the example, perhaps changed, or why it is dropped.
Rule = Callable[[Benchmark, rows.Row, Example], Example | str]

_USABLE = (joining.PARSED, joining.REPAIRED, joining.RATIONALIZED)
_LABEL_FAULTS = (
  *rows.LABEL_PROBLEMS,
  parsing.NO_MARKER,
  parsing.TWO_MARKERS,
  parsing.NO_LABEL,
  parsing.BLANK_LABEL,
)
# A stray marker where a small decode budget cut a completion.
_STRAY = re.compile(r'\s*\n\s*Answer:?\s*$')
_PUNCTUATION = '.,;:!?\'"()[] \t\n'


def _parsed(benchmark: Benchmark, row: rows.Row, example: Example):
  """Keeps examples whose completion has a rationale and a possible label."""
  if example.status not in _USABLE:
    return example.status
  return _only(example, lambda r: not _problem(benchmark, row, r))


def _correct(benchmark: Benchmark, row: rows.Row, example: Example):
  """Keeps examples whose LLM label is right."""
  if example.correct is None:
    raise contract.UserError(
      f'The metric of {benchmark.name!r} gives no "accuracy", expected one'
      ' to keep correct rationales by. Add it, or keep by another rule.'
    )
  if not example.correct:
    return 'wrong_label'
  return _only(
    example, lambda r: joining.is_correct(benchmark, row.gt_label, r.label)
  )


def _majority(_, row: rows.Row, example: Example):
  """Keeps examples whose label has more than half of the row's samples."""
  won = example.status == joining.RATIONALIZED or (
    2 * example.votes > example.samples
  )
  return _only(example, lambda r: r.agrees) if won else 'no_majority'


def _consistent(benchmark: Benchmark, row: rows.Row, example: Example):
  """Drops rationales that argue for another label than the human one, or none.

  The LLM's label may be corrupted: what the rationale says counts. Where a row
  has several, the first that argues for the human label takes the place of one
  that does not, and its label the place of the LLM's.
  """
  if not example.rationale.strip():
    return example.status
  argues = conclusions.argues(
    benchmark,
    example.rationale,
    label=example.llm_label,
    options=example.options,
    target=example.gt_label,
  )
  kept = _only(example, lambda r: r.gt != conclusions.AGAINST)
  if argues != conclusions.AGAINST:
    return kept
  for other in example.rationales:
    if other.gt == conclusions.FOR:
      kept = dataclasses.replace(
        kept,
        rationale=other.text,
        llm_label=other.label,
        status=_problem(benchmark, row, other) or joining.PARSED,
        correct=joining.is_correct(benchmark, row.gt_label, other.label),
        verdict='',  # on what was there before, as the probabilities are
        label_probs=(),
      )
      return _relabelled(benchmark, kept, kept.rationales)
  return 'argues_for_another_label'


def _drop_corrupted(benchmark: Benchmark, row: rows.Row, example: Example):
  """Drops labels that are blank, cut off or otherwise no answer."""
  if example.status in _LABEL_FAULTS:
    return example.status
  return _only(example, lambda r: not _problem(benchmark, row, r))


def _repair_corrupted(benchmark: Benchmark, row: rows.Row, example: Example):
  """Repairs labels that name one answer after all; drops the other bad ones.

  A stray marker at the end of a rationale is removed too.
  """
  rationale = _STRAY.sub('', example.rationale)
  example = _all_repaired(benchmark, row, example)
  if example.status in rows.LABEL_PROBLEMS:
    label = repaired(benchmark, row.fields, example.llm_label)
    if label is None:
      return example.status
    fixed = dataclasses.replace(
      example,
      rationale=rationale,
      llm_label=label,
      status=joining.REPAIRED,
      correct=joining.is_correct(benchmark, row.gt_label, label),
    )
    return _relabelled(benchmark, fixed, fixed.rationales)
  if example.status in _LABEL_FAULTS:
    return example.status
  if rationale != example.rationale and rationale:
    return dataclasses.replace(example, rationale=rationale)
  return example


def _only(example: Example, keep: Callable[[Rationale], bool]) -> Example:
  """The example with some of its rationales; one alone is no choice."""
  kept = tuple(filter(keep, example.rationales))
  return dataclasses.replace(example, rationales=kept if len(kept) > 1 else ())


def _relabelled(
  benchmark: Benchmark, example: Example, kept: Sequence[Rationale]
) -> Example:
  """The example with these rationales, judged by its label as it is now."""
  said = [(r.text, r.label) for r in kept]
  wrong = example.counterfactual
  if wrong and counterfactuals.is_same(benchmark, wrong[0], example.llm_label):
    wrong = ()
  return dataclasses.replace(
    example,
    rationales=joining.all_rationales(benchmark, said, example),
    counterfactual=wrong,
  )


def _problem(
  benchmark: Benchmark, row: rows.Row, rationale: Rationale
) -> str | None:
  return rows.label_problem(benchmark, row.fields, rationale.label)


def _all_repaired(
  benchmark: Benchmark, row: rows.Row, example: Example
) -> Example:
  """The example with its several rationales repaired, each as the one is."""
  kept = []
  for each in example.rationales:
    label = each.label
    if _problem(benchmark, row, each):
      label = repaired(benchmark, row.fields, label)
    text = _STRAY.sub('', each.text) or each.text
    if label is not None:
      kept.append(dataclasses.replace(each, text=text, label=label))
  return _relabelled(benchmark, example, kept)


# Flag value -> rules, for `prepare --keep` and `prepare --clean`.
KEEP: Mapping[str, Sequence[Rule]] = {
  'all': (),
  'parsed': (_parsed,),
  'correct': (_parsed, _correct),
  'majority': (_parsed, _majority),
  'consistent': (_consistent,),
}
CLEAN: Mapping[str, Sequence[Rule]] = {
  'none': (),
  'drop': (_drop_corrupted,),
  'repair': (_repair_corrupted,),
}


def apply(
  rules: Sequence[Rule], benchmark: Benchmark, row: rows.Row, example: Example
) -> Example | str:
  """Applies rules in order, until one gives a reason to drop the example."""
  for rule in rules:
    if isinstance(example, str):
      break
    example = rule(benchmark, row, example)
  return example


def repaired(
  benchmark: Benchmark, fields: benchmark_lib.Row, label: str
) -> str | None:
  """The one answer that a corrupted label stands for, or None.

  Case, blanks and punctuation at the ends are forgiven first; then, in a
  closed set of labels, text after the label (`neutral` and the next
  exemplar's first letters) and a label cut short (`entail`).
  """
  answers = list(benchmark.labels)
  if benchmark.options is not None:
    answers = list(dict.fromkeys(benchmark.options(fields)))
  plain = _plain(label)
  for fits in (
    lambda answer: _plain(answer) == plain,
    lambda answer: benchmark.labels and _starts(label, answer),
    lambda answer: benchmark.labels and _cut(plain, _plain(answer)),
  ):
    found = [answer for answer in answers if fits(answer)]
    if len(found) == 1:
      return found[0]
  return None


def _plain(text: str) -> str:
  return text.strip(_PUNCTUATION).casefold()


def _starts(label: str, answer: str) -> bool:
  """Whether the label's first word or words are the answer."""
  rest = label.lstrip().casefold().removeprefix(answer.casefold())
  return len(rest) < len(label.lstrip()) and not rest[:1].isalnum()


def _cut(plain: str, answer: str) -> bool:
  """Whether the label is the beginning of the answer, three letters or more."""
  return len(plain) >= 3 and answer.startswith(plain)
