# SPDX-License-Identifier: Apache-2.0
"""A T5 that cannot be is refused where it is described."""

import dataclasses

import pytest

from tests.core import tiny_t5


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'emb_dim': 0}, 'emb_dim is 0, expected an int >= 1'),
    ({'mlp_activations': ('tanh',)}, 'T5 1.1 has'),
    ({'mlp_activations': ()}, 'one or more of'),
    ({'dropout_rate': 1.0}, 'dropout_rate is 1.0'),
    ({'dtype': 'int8'}, 'expected float32 or bfloat16'),
    ({'num_buckets': 6}, 'a multiple of 4'),
    ({'max_distance': 4}, 'max_distance is 4'),
    ({'remat': 'some'}, "remat is 'some'"),
    ({'relpos_bias_per_layer': 1}, 'relpos_bias_per_layer is 1'),
    ({'scan_layers': 'no'}, "scan_layers is 'no', expected True or False"),
    ({'dropout_rate': '0.1'}, "dropout_rate is '0.1'"),
  ],
)
def test_impossible_sizes_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(tiny_t5.GATED, **wrong)
