# SPDX-License-Identifier: Apache-2.0
"""Options are those that this XLA knows; they change no answer."""

import jax
import numpy as np
import pytest

from dsbs_jax.core import decoding, partitioning
from dsbs_jax.inference.backends import decode_functions
from tests.core import tiny_decoder
from tests.inference import small_student


@pytest.fixture
def forget():
  decode_functions.cpu_step_options.cache_clear()
  yield
  decode_functions.cpu_step_options.cache_clear()


def test_the_pinned_xla_knows_the_options(forget):
  assert decode_functions.cpu_step_options() == {
    'xla_cpu_experimental_ynn_fusion_type': ''
  }


def test_another_xla_gets_none(forget, monkeypatch):
  monkeypatch.setattr(
    decode_functions, '_CPU_STEP_OPTIONS', {'xla_cpu_no_such': ''}
  )
  assert decode_functions.cpu_step_options() == {}


@pytest.mark.parametrize('num_beams', [1, 2])
def test_two_programs_answer_as_one(num_beams):
  model, params = small_student.MODEL, small_student.params()
  tokens = np.random.default_rng(0).integers(2, 384, (4, 12)).astype(np.int32)
  tokens[1:, 7:] = 0
  rows = {'encoder_input_tokens': tokens}
  program = decode_functions.decode_program(
    model,
    partitioning.make_mesh('1x1', devices=jax.devices()[:1]),
    max_decode_len=5,
    num_beams=num_beams,
    stop=(),
  )
  if num_beams == 1:
    expected = tiny_decoder.greedy(model, 5)(params, rows)
  else:
    rules = decoding.BrevityPenalty()
    beams, _ = tiny_decoder.beams(model, 2, 5, rules)(params, rows)
    expected = beams[:, 0]
  np.testing.assert_array_equal(program(params, rows), expected)
