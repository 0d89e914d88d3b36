# SPDX-License-Identifier: Apache-2.0
"""The projection of hidden states to the vocabulary, and its gradient.

Two forms with the same result, see `platform`. Both have their gradient written
out: factors keep the activation dtype, sums are float32.
"""

import functools

import jax
import jax.numpy as jnp

from dsbs_jax.core import matmul_precision, platform
from dsbs_jax.core.layers import low_rank


def logits_dense(
  inputs: jax.Array, kernel: jax.Array | low_rank.LowRankKernel
) -> jax.Array:
  """[..., D] x [D, V] -> [..., V] float32, in two forms: see `platform`.

  Factors have the dtype of the inputs, in the gradient too; products are added
  up in float32.

  Args:
    inputs: [..., D] in the activation dtype.
    kernel: [D, V] float32, or as LoRA splits it.
  """
  if isinstance(kernel, low_rank.LowRankKernel):
    precision = matmul_precision.of(inputs.dtype)
    thin = jnp.matmul(
      inputs, kernel.a.astype(inputs.dtype), precision=precision
    )
    return logits_dense(inputs, kernel.kernel) + logits_dense(thin, kernel.b)
  return platform.choose(
    inputs, kernel, cpu=logits_dense_for_cpu, others=plain_logits_dense
  )


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
  """A product of matrices of one dtype, float32."""
  return jnp.matmul(
    left,
    right,
    precision=matmul_precision.of(left.dtype),
    preferred_element_type=jnp.float32,
  )


def _logits_dense_forward(inputs, kernel):
  flat = inputs.reshape(-1, inputs.shape[-1])
  logits = _product(flat, kernel.astype(inputs.dtype))
  return logits.reshape(*inputs.shape[:-1], -1), (inputs, kernel)


def _logits_dense_backward(residuals, gradient, *, copy):
  inputs, kernel = residuals
  flat = inputs.reshape(-1, inputs.shape[-1])
  gradient = gradient.reshape(-1, gradient.shape[-1]).astype(inputs.dtype)
  transposed = flat.T
  if copy:  # without the barrier XLA would merge it into the product
    transposed = jax.lax.optimization_barrier(transposed)
  inputs_gradient = _product(gradient, kernel.astype(inputs.dtype).T)
  return (
    inputs_gradient.reshape(inputs.shape).astype(inputs.dtype),
    _product(transposed, gradient).astype(kernel.dtype),
  )


@jax.custom_vjp
def plain_logits_dense(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
  """As its formula says; Args: as in `logits_dense`.

  JAX would multiply a float32 gradient by bfloat16 factors, which accelerators
  do at the speed of float32.
  """
  return _logits_dense_forward(inputs, kernel)[0]


@jax.custom_vjp
def logits_dense_for_cpu(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
  """The kernel's gradient takes a copy; Args: as in `logits_dense`.

  Of the inputs, transposed. Without it, XLA's CPU backend copies the other
  factor, the gradient of all logits, of 100 MB.
  """
  return _logits_dense_forward(inputs, kernel)[0]


plain_logits_dense.defvjp(
  _logits_dense_forward, functools.partial(_logits_dense_backward, copy=False)
)
logits_dense_for_cpu.defvjp(
  _logits_dense_forward, functools.partial(_logits_dense_backward, copy=True)
)
