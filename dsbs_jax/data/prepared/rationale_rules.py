# SPDX-License-Identifier: Apache-2.0
"""Rules by name: which of a row's several rationales training draws from.

  first       the one that is prepared: the first with the majority's label
  all         every one
  majority    those with the majority's label
  shortest    of these, the one with the fewest words
  diverse     of these, those that are worded differently, see `diverse`
  consistent  those that do not argue for another label than the task's target,
              by the rule of `conclusions`

A visit takes one of what a rule leaves (see `batching/rationale_draw`). Where it
leaves nothing, and for rows with one rationale, that is the prepared one.
"""

from collections.abc import Callable, Mapping, Sequence

from dsbs_jax import contract
from dsbs_jax.data import benchmark, conclusions

FIRST = 'first'
# Rationales that share more of their word triples are said to be the same.
MAX_SIMILARITY = 0.5
_WORDS = 3

Rationales = Sequence[benchmark.Rationale]


def check(rule: str, *, place: str = 'RATIONALE_CHOICE') -> None:
  """Raises UserError where no rule has this name.

  Args:
    rule: the name.
    place: the macro or flag that it comes from, for the error.
  """
  if rule not in NAMES:
    raise contract.UserError(
      f'{place} is {rule!r}, expected one of {", ".join(NAMES)}. Correct it.'
    )


def chosen(rule: str, rationales: Rationales, label_source: str) -> list[int]:
  """Which of a row's rationales a rule leaves, by their numbers, in order.

  Args:
    rule: one of `NAMES` other than FIRST.
    rationales: two or more.
    label_source: 'gt' or 'llm', whose label the task trains on.

  Returns:
    Numbers from 0; none where the rule leaves nothing.
  """
  return _RULES[rule](rationales, label_source)


def diverse(rationales: Rationales, numbers: Sequence[int]) -> list[int]:
  """Of some rationales, those worded otherwise than each one before them.

  In order, one is kept if J(a, b) = |A & B| / |A | B| is at most
  MAX_SIMILARITY for all that are kept; A is the set of triples of consecutive
  words, lower-cased (of a shorter text, all its words).

  The idea is the selector for accuracy and diversity of MoRSD, Yan et al. 2025,
  arXiv:2509.23574. Of that paper only the abstract was at hand, so the measure
  and its bound are ours, and its rationale difficulty is not there.

  Args:
    rationales: all of a row.
    numbers: which of them to choose from.
  """
  kept: dict[int, frozenset] = {}
  for number in numbers:
    triples = _triples(rationales[number].text)
    if all(
      len(triples & other) <= MAX_SIMILARITY * len(triples | other)
      for other in kept.values()
    ):
      kept[number] = triples
  return list(kept)


def _triples(text: str) -> frozenset[tuple[str, ...]]:
  words = text.casefold().split()
  last = max(1, len(words) - _WORDS + 1)
  return frozenset(tuple(words[i : i + _WORDS]) for i in range(last))


def _agreeing(rationales: Rationales) -> list[int]:
  return [i for i, rationale in enumerate(rationales) if rationale.agrees]


def _all(rationales: Rationales, label_source: str) -> list[int]:
  return list(range(len(rationales)))


def _majority(rationales: Rationales, label_source: str) -> list[int]:
  return _agreeing(rationales)


def _shortest(rationales: Rationales, label_source: str) -> list[int]:
  found = _agreeing(rationales)
  return sorted(found, key=lambda i: len(rationales[i].text.split()))[:1]


def _diverse(rationales: Rationales, label_source: str) -> list[int]:
  return diverse(rationales, _agreeing(rationales))


def _consistent(rationales: Rationales, label_source: str) -> list[int]:
  llm = label_source == 'llm'
  argues = [each.llm if llm else each.gt for each in rationales]
  return [i for i, v in enumerate(argues) if v != conclusions.AGAINST]


_RULES: Mapping[str, Callable[[Rationales, str], list[int]]] = {
  'all': _all,
  'majority': _majority,
  'shortest': _shortest,
  'diverse': _diverse,
  'consistent': _consistent,
}
NAMES = (FIRST, *_RULES)
