# SPDX-License-Identifier: Apache-2.0
"""Both engines have one recipe: the macros that they share are equal."""

import pathlib
import re

import pytest

GIN = pathlib.Path(__file__).resolve().parents[2] / 'gin'
_MACRO = re.compile(r'^([A-Z][A-Z_]*) = (.*)$', re.MULTILINE)
# What T5X says in its own words, such as its mesh, splits, remat, module and
# profile, and the term that ties the two views of a pair, which T5X trains one
# after another. T5X computes whole rows, and its networks know no vocabulary.
BUILT_IN_ONLY = {
  'train.gin': {
    'ALLOW_PICKLE',
    'CHUNK_TOKENS',
    'EVAL_SPLITS',
    'LORA_ALPHA',
    'LORA_BASE_DTYPE',
    'LORA_TARGETS',
    'MATMUL_PRECISION',
    'MAX_NONFINITE_STEPS',
    'MESH',
    'MIXTURE_RATES',
    'MI_WEIGHT',
    'MODULE',
    'PROFILE_STEPS',
    'REMAT',
    'SCAN_LAYERS',
    'SHARDING_RULES',
    'SKIP_PADDING',
  },
  'eval.gin': {
    'ALLOW_PICKLE',
    'BACKEND',
    'EVAL_SPLITS',
    'MATMUL_PRECISION',
    'MESH',
    'MODULE',
    'SCAN_LAYERS',
    'SCORE_LABELS',
    'SHARDING_RULES',
    'STEP',
  },
}


def macros(path):
  return dict(_MACRO.findall(path.read_text()))


@pytest.mark.parametrize('name', BUILT_IN_ONLY)
def test_macros_have_the_same_defaults(name):
  ours, theirs = macros(GIN / name), macros(GIN / 't5x' / name)
  shared = set(ours) & set(theirs) - {'EVAL_OUTPUT_DIR', 'VOCAB_SIZE'}
  assert {key: ours[key] for key in shared} == {
    key: theirs[key] for key in shared
  }
  missing = set(ours) - set(theirs)
  assert missing <= BUILT_IN_ONLY[name], sorted(missing)
