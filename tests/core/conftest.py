# SPDX-License-Identifier: Apache-2.0
"""What the tests of the numerics share."""

import jax
import pytest

from dsbs_jax.core import platform


@pytest.fixture
def strict_promotion():
  """Arrays of different dtypes do not mix by accident."""
  with jax.numpy_dtype_promotion('strict'):
    yield


@pytest.fixture(autouse=True)
def traced_for(request):
  """As programs of runs are traced, which takes two thirds of the time.

  `@pytest.mark.parametrize('traced_for', [None], indirect=True)`: for any.
  """
  name = getattr(request, 'param', jax.default_backend())
  with platform.traced_for(name):
    yield
