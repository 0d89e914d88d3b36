# SPDX-License-Identifier: Apache-2.0
"""Parameters that give no finite logits give an error, never an answer."""

import dataclasses

import jax
import numpy as np
import pytest

from dsbs_jax.core import partitioning
from dsbs_jax.inference.backends import decode_functions
from tests.inference import small_student


@pytest.mark.parametrize('num_beams', [1, 2])
def test_logits_that_are_not_finite_are_an_error(num_beams):
  params = jax.tree.map(np.array, small_student.params())
  fns = decode_functions.DecodeFns(
    small_student.MODEL,
    params,
    mesh=partitioning.make_mesh(None),
    max_decode_len=2,
    max_rationale_len=2,
    num_beams=num_beams,
  )
  tokens, options = np.array([[5, 1]]), np.array([[[7, 1]]])
  assert (fns.generate(tokens) >= 0).all()
  assert np.isfinite(fns.score_options(tokens, options)).all()
  params['encoder']['encoder_norm']['scale'][3] = np.nan
  for answer in (
    lambda: fns.generate(tokens),
    lambda: fns.generate_rationale(tokens),
    lambda: fns.score_options(tokens, options),
  ):
    with pytest.raises(ValueError, match='logits of a batch are not finite'):
      answer()


def test_students_share_a_program_only_where_all_facts_are_equal():
  facts = {
    'model': small_student.MODEL,
    'mesh': partitioning.make_mesh(None),
    'max_decode_len': 2,
    'num_beams': 1,
    'stop': (),
  }
  others = {
    'model': dataclasses.replace(small_student.MODEL, dtype='bfloat16'),
    'mesh': jax.make_mesh((1,), ('data',)),
    'max_decode_len': 3,
    'num_beams': 2,
    'stop': (7,),
  }
  program = decode_functions.decode_program(**facts)
  assert decode_functions.decode_program(**facts) is program
  for name, other in others.items():
    changed = facts | {name: other}
    assert decode_functions.decode_program(**changed) is not program
    if name in ('model', 'mesh'):
      scores = [
        decode_functions.score_program(some['model'], some['mesh'])
        for some in (facts, facts, changed)
      ]
      assert scores[0] is scores[1] is not scores[2]
