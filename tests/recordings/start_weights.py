# SPDX-License-Identifier: Apache-2.0
"""Start weights that need no file: the same numbers on every machine.

NumPy promises that the raw 64-bit stream of PCG64 stays as it is, which it does
not promise of its distributions. Hence uniform weights made of raw bits.
"""

import math
import zlib

import numpy as np


def draw(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Weights of a T5 in transformers' names and axes.

  Args:
    shapes: parameter name -> shape; kernels are [outputs, inputs].

  Returns:
    name -> float32 array, each uniform around 0 (norms around 1) with a standard
    deviation of 1 for the embedding, 0.5 for position biases, 0.2 for norms and
    1 / sqrt(inputs) for all others, the first of T5's that keeps scores small:
    queries also have 1 / sqrt(d_kv), as T5 does not divide scores by it.
  """
  return {name: _draw(name, shape) for name, shape in shapes.items()}


def _draw(name, shape):
  bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
  # 24 bits, all of which float32 holds: [-0.5, 0.5).
  uniform = ((bits >> 40).astype(np.float32) * np.float32(2**-24)) - np.float32(
    0.5
  )
  center, std = 0.0, shape[-1] ** -0.5
  if len(shape) == 1:
    center, std = 1.0, 0.2
  elif name == 'shared.weight':
    std = 1.0
  elif 'relative_attention_bias' in name:
    std = 0.5
  scale = np.float32(std * 12**0.5)
  return np.float32(center) + scale * uniform.reshape(shape)
