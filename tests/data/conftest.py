# SPDX-License-Identifier: Apache-2.0
"""Prepared data that several files read and none changes."""

import pytest

from dsbs_jax.data.prepared import tokens
from tests.data import small_prepared


@pytest.fixture(scope='session')
def source(tmp_path_factory) -> tokens.Source:
  """Prepared `cqa` and `anli1` of invented sums, and their vocabulary."""
  folder = tmp_path_factory.mktemp('prepared')
  small_prepared.write(folder)
  small_prepared.write(folder, name='anli1')
  return tokens.Source(str(folder), small_prepared.vocabulary(folder))
