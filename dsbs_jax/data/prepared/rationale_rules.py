# SPDX-License-Identifier: Apache-2.0
"""Rules by name: which of a row's several rationales training draws from.

  first       the one that is prepared: the first with the majority's label
  all         every one
  majority    those with the majority's label
  shortest    of these, the one with the fewest words
  diverse     of these, those that are worded differently, see `diverse`
  consistent  those that do not argue for another label than the task's target,
              by the rule of `conclusions`

A visit takes one of what a rule leaves (see `batching/token_table`). Where
it leaves nothing, and for rows with one rationale, that is the prepared one.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data import benchmark, conclusions
from dsbs_jax.data.prepared import ragged

FIRST = 'first'
# Rationales that share more of their word triples are said to be the same.
MAX_SIMILARITY = 0.5
_WORDS = 3

Rationales = Sequence[benchmark.Rationale]


@dataclasses.dataclass(frozen=True)
class Choices:
  """What a rule leaves of each row of a task: visits choose from it.

  Attributes:
    rule: its name.
    fingerprint: digest of all rationales of rows with several.
    targets: decoder ids of every rationale, row after row, EOS_ID last.
    counts: [N] int64, how many each row has, 1 or more.
    texts: the same targets as UTF-8 bytes.
    num_empty: rows with several of which the rule left none, so that the
      prepared one is taken.
  """

  rule: str
  fingerprint: str
  targets: ragged.Ragged
  counts: np.ndarray
  texts: ragged.Ragged
  num_empty: int

  def text(self, rationale: int) -> str:
    """The decoder's text, by its number among those of all rows."""
    return self.texts[rationale].tobytes().decode()

  def __str__(self) -> str:
    several = int((self.counts > 1).sum())
    words = (
      f'{self.rule} leaves {self.counts.mean():.2f} rationales per example,'
      f' several for {several:,} of {len(self.counts):,}'
    )
    if self.num_empty:
      words += f', none for {self.num_empty:,}, which keep the prepared one'
    return words


def check(rule: str, *, place: str = 'RATIONALE_CHOICE') -> None:
  """Raises UserError where no rule has this name."""
  if rule not in NAMES:
    raise contract.UserError(
      f'{place} is {rule!r}, expected one of {", ".join(NAMES)}. Correct it.'
    )


def diverse(rationales: Rationales, numbers: Sequence[int]) -> list[int]:
  """Of some rationales, those worded otherwise than each one before them.

  In order, one is kept if J(a, b) = |A & B| / |A | B| is at most
  MAX_SIMILARITY for all that are kept; A is the set of triples of consecutive
  words, lower-cased (of a shorter text, all its words).

  The idea is the selector for accuracy and diversity of MoRSD, Yan et al. 2025,
  arXiv:2509.23574. Of that paper only the abstract was at hand, so the measure
  and its bound are ours, and its rationale difficulty is not there.
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


def _shortest(rationales: Rationales) -> list[int]:
  found = _agreeing(rationales)
  return sorted(found, key=lambda i: len(rationales[i].text.split()))[:1]


def _consistent(rationales: Rationales, label_source: str) -> list[int]:
  llm = label_source == 'llm'
  argues = [each.llm if llm else each.gt for each in rationales]
  return [i for i, v in enumerate(argues) if v != conclusions.AGAINST]


# Name -> function of two or more rationales and of whose label the task trains
# on, 'gt' or 'llm', to the numbers, from 0, of those that the rule leaves.
RULES: Mapping[str, Callable[[Rationales, str], list[int]]] = {
  'all': lambda rationales, _: list(range(len(rationales))),
  'majority': lambda rationales, _: _agreeing(rationales),
  'shortest': lambda rationales, _: _shortest(rationales),
  'diverse': lambda rationales, _: diverse(rationales, _agreeing(rationales)),
  'consistent': _consistent,
}
NAMES = (FIRST, *RULES)
