# SPDX-License-Identifier: Apache-2.0
"""Fields of a config take what they can be, and name themselves otherwise."""

import math
import types

import pytest

from dsbs_jax import contract
from dsbs_jax.runtime import field_checks


def _settings(value):
  return types.SimpleNamespace(field=value)


@pytest.mark.parametrize(
  ('check', 'right', 'wrong'),
  [
    (
      field_checks.numbers,
      (0, 1, 0.5),
      (True, -1, -0.1, math.nan, math.inf, '1', None),
    ),
    (field_checks.numbers_or_none, (None, 0.5), (True, '1')),
    (field_checks.counts, (1, 1 << 40), (True, 0, 1.0, '1', None, 1 << 62)),
    (field_checks.texts, ('a',), ('', 'a\0', b'a', None)),
    (field_checks.rising, ((1,), (1, 3, 4)), ((), (0, 1), (2, 2), (3, 1), [1])),
    (field_checks.flags, (True, False), (0, 1, None)),
  ],
)
def test_only_what_a_field_can_be_passes(check, right, wrong):
  for value in right:
    check(_settings(value), 'field')
  for value in wrong:
    with pytest.raises(contract.UserError, match='^field is .*, expected '):
      check(_settings(value), 'field')
