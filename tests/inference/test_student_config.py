# SPDX-License-Identifier: Apache-2.0
"""Students that differ are told apart by their parameters."""

import numpy as np

from dsbs_jax.inference import student_config


def test_lora_changes_the_hash_though_small_parameters_stay():
  def params(kernel):
    large = np.full((2, 512, 384), kernel, np.float32)
    return {'norm': {'scale': np.ones(8, np.float32)}, 'kernel': large}

  one, same, other = map(student_config.hash_params, map(params, (0, 0, 1e-7)))
  assert one == same != other
