# SPDX-License-Identifier: Apache-2.0
"""A run to plan."""

import pytest

from tests.hardware import small_run


@pytest.fixture(scope='session')
def run():
  return small_run.build(bindings=small_run.SMALL)
