# SPDX-License-Identifier: Apache-2.0
"""Compiler options for decoding on CPUs, whose products have few rows.

XLA's CPU backend has two libraries for products of matrices. The one that it
takes by default, YNNPACK, is faster at the encoder's thousands of rows; the
other, Eigen, at a decoding step's dozens: T5 small takes 32 ms per step of 16
rows and core instead of 50 (docs/performance.md).
"""

import functools

import jax

# Of a batch's tokens: the encoder that leaves padding out, see `cache.prefill`.
# T5 small takes 0.57 s for 16 rows of 25 to 60 tokens with it, 0.78 s without.
# Compiling takes three times as long, so there is one share.
TOKEN_SHARES = (0.75,)
_STEP_OPTIONS = {'xla_cpu_experimental_ynn_fusion_type': ''}


@functools.cache
def step_options() -> dict[str, str]:
  """Options of a CPU's program of decoding steps.

  They are experimental: an XLA that does not know them gets none.
  """
  try:
    jax.jit(lambda: 0, compiler_options=_STEP_OPTIONS).lower().compile()
  except jax.errors.JaxRuntimeError:
    return {}
  return _STEP_OPTIONS
