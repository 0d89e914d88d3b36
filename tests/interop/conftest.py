# SPDX-License-Identifier: Apache-2.0
"""A folder that this project wrote for Hugging Face."""

import pytest

from dsbs_jax.interop.hf import hf_checkpoint
from tests.interop import hf_models


@pytest.fixture
def saved(tmp_path):
  """The folder of a small T5 1.1, and its parameters."""
  folder = tmp_path / 'model'
  params = hf_models.params(hf_models.GATED)
  hf_checkpoint.save_hf(folder, params, hf_models.GATED)
  return folder, params
