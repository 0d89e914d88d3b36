# SPDX-License-Identifier: Apache-2.0
"""A kernel with a correction of low rank, multiplied in two thin parts.

x (W + A B) = x W + (x A) B: no matrix of the kernel's size is made, and none
for its gradient where W is a constant. See core/lora.py.
"""

import flax.struct
import jax


@flax.struct.dataclass
class LowRankKernel:
  """Stands for kernel + a b, wherever layers take a kernel.

  Attributes:
    kernel: W, [D, F], float32 or bfloat16.
    a: A, [D, r] float32.
    b: B, [r, F] float32, with its scale multiplied in.
  """

  kernel: jax.Array
  a: jax.Array
  b: jax.Array
