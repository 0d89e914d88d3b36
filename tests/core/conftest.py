# SPDX-License-Identifier: Apache-2.0
"""What the tests of the numerics share."""

import jax
import pytest


@pytest.fixture
def strict_promotion():
  """Arrays of different dtypes do not mix by accident."""
  with jax.numpy_dtype_promotion('strict'):
    yield
