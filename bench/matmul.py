# SPDX-License-Identifier: Apache-2.0
"""python -m bench.matmul: a worker that multiplies matrices, and nothing else.

What it reaches is the ceiling of everything else on the machine, in the same
minute and under the same load. With --chain the products are those of T5 mini's
projections, one after another with their gradients: what a step could reach if
it did nothing else.
"""

import argparse

import jax
import jax.numpy as jnp

from bench import worker
from dsbs_jax.runtime import malloc


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--size', type=int, default=1024)
  parser.add_argument('--products', type=int, default=20)
  parser.add_argument('--chain', action='store_true')
  arguments = parser.parse_args()
  malloc.keep_freed_memory()
  if arguments.chain:
    worker.serve(chain(), {})
    return
  matrix = jnp.full((arguments.size,) * 2, 1 / arguments.size)
  product = jax.jit(lambda a, b: a @ b)

  def measure(_):
    result = matrix
    for _ in range(arguments.products):
      result = product(result, matrix)
    result.block_until_ready()
    return {'flops': 2.0 * arguments.size**3 * arguments.products}

  measure('')
  worker.serve(measure, {})


def chain(tokens: int = 2048, width: int = 256, length: int = 32):
  """() -> the gradients of products of [tokens, width] and square matrices."""
  rows = jnp.full((tokens, width), 1.0)
  kernels = [jnp.full((width, width), 1 / width) for _ in range(length)]

  def total(kernels, rows):
    for kernel in kernels:
      rows = rows @ kernel
    return jnp.sum(rows * rows)

  gradients = jax.jit(jax.grad(total, (0, 1)))

  def measure(_):
    jax.block_until_ready(gradients(kernels, rows))
    return {'flops': 3 * 2.0 * tokens * width**2 * length}

  measure('')
  return measure


if __name__ == '__main__':
  main()
