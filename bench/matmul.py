# SPDX-License-Identifier: Apache-2.0
"""python -m bench.matmul: a worker that multiplies matrices, and nothing else.

What it reaches is the ceiling of everything else on the machine, in the same
minute and under the same load.
"""

import argparse

import jax
import jax.numpy as jnp

from bench import worker


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', type=int, default=1024)
  parser.add_argument('--products', type=int, default=20)
  parser.add_argument('--dtype', default='float32')
  arguments = parser.parse_args()
  matrix = jnp.full((arguments.size,) * 2, 1 / arguments.size, arguments.dtype)
  product = jax.jit(lambda a, b: a @ b)

  def measure(_):
    result = matrix
    for _ in range(arguments.products):
      result = product(result, matrix)
    result.block_until_ready()
    return {'flops': 2.0 * arguments.size**3 * arguments.products}

  measure('')
  worker.serve(measure, {})


if __name__ == '__main__':
  main()
