# SPDX-License-Identifier: Apache-2.0
"""Each rule leaves what its formula says: beside a slow reference."""

import random

import numpy as np
import pytest

from dsbs_jax import contract
from dsbs_jax.data import benchmark
from dsbs_jax.data.prepared import rationale_rules

VERDICTS = ('for', 'against', 'unclear')


def rows(number):
  """Invented rationales of a few words, of which many are alike."""
  draw = random.Random(7)
  for _ in range(number):
    made = []
    for _ in range(draw.randrange(2, 7)):
      words = draw.choices('a b c d'.split(), k=draw.randrange(1, 9))
      made.append(
        benchmark.Rationale(
          ' '.join(words),
          'x',
          agrees=draw.random() < 0.7,
          gt=draw.choice(VERDICTS),
          llm=draw.choice(VERDICTS),
        )
      )
    yield made


def similarity(one, other):
  """|A & B| / |A | B| over a matrix of all triples of words."""
  sets = []
  for text in (one, other):
    words = text.lower().split()
    sets.append(
      {' '.join(words[i : i + 3]) for i in range(len(words) - 2)}
      or {' '.join(words)}
    )
  every = sorted(sets[0] | sets[1])
  has = np.array([[triple in found for triple in every] for found in sets])
  return np.logical_and(*has).sum() / np.logical_or(*has).sum()


def reference(rule, rationales, source):
  agreeing = [i for i, r in enumerate(rationales) if r.agrees]
  if rule == 'all':
    return list(range(len(rationales)))
  if rule == 'consistent':
    return [
      i
      for i, r in enumerate(rationales)
      if {'gt': r.gt, 'llm': r.llm}[source] in ('for', 'unclear')
    ]
  if rule == 'majority':
    return agreeing
  if rule == 'shortest':
    if not agreeing:
      return []
    sizes = [len(rationales[i].text.split()) for i in agreeing]
    return [agreeing[int(np.argmin(sizes))]]
  kept = []
  for i in agreeing:
    alike = [similarity(rationales[i].text, rationales[k].text) for k in kept]
    if max(alike, default=0.0) <= 0.5:
      kept.append(i)
  return kept


@pytest.mark.parametrize('source', ['gt', 'llm'])
@pytest.mark.parametrize('rule', rationale_rules.NAMES[1:])
def test_rules_leave_what_a_slow_reference_leaves(rule, source):
  found = []
  for rationales in rows(300):
    kept = rationale_rules.RULES[rule](rationales, source)
    assert kept == reference(rule, rationales, source)
    found.append(len(kept))
  if rule not in ('all', 'shortest'):
    assert 0 in found and len(set(found)) > 3
  assert (max(found) == 1) == (rule == 'shortest')


def test_a_rule_that_does_not_exist_is_told_with_those_that_do():
  for wrong in ('longest', None, 3):
    with pytest.raises(
      contract.UserError,
      match='RATIONALE_CHOICE is.*expected one of first, all',
    ):
      rationale_rules.check(wrong)
  rationale_rules.check('first')
