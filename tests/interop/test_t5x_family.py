# SPDX-License-Identifier: Apache-2.0
"""T5X asked for a network that it does not have ends with one line."""

import pytest

from dsbs_jax.interop import t5x_family

SIZES = {'NUM_ENCODER_LAYERS': 2}


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'family': 'gemma3'}, "error: FAMILY is 'gemma3', expected a T5"),
    ({'relpos_bias_per_layer': True}, 'error: the network is a umT5, expected'),
    ({'sizes': {'A': 1, 'B': None}}, 'error: no gin file sets B. Give a model'),
  ],
)
def test_another_network_ends_the_program_with_one_line(capsys, given, message):
  assert t5x_family.vocab_size(384, sizes=SIZES) == 384
  with pytest.raises(SystemExit) as ended:
    t5x_family.vocab_size(384, **{'sizes': SIZES, **given})
  assert ended.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(message)
