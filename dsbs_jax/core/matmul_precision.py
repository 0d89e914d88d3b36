# SPDX-License-Identifier: Apache-2.0
"""In which precision float32 factors are multiplied."""

import os

import jax
import jax.numpy as jnp

from dsbs_jax import contract

# As JAX names them; MATMUL_PRECISION.
NAMES = (
  *('default', 'high', 'highest'),
  *('bfloat16', 'tensorfloat32', 'float32'),
)
_VARIABLE = 'JAX_DEFAULT_MATMUL_PRECISION'


def use(name: str | None) -> None:
  """Chooses how this process multiplies float32 factors from now on.

  Args:
    name: one of NAMES; None leaves it to the variable
      JAX_DEFAULT_MATMUL_PRECISION, and without one to `of`.

  Raises:
    UserError: the variable says another one.
  """
  variable = os.environ.get(_VARIABLE) or None
  if name and variable not in (None, name):
    raise contract.UserError(
      f'MATMUL_PRECISION is {name!r}, but the variable {_VARIABLE} is'
      f' {variable!r}, expected one of them. Unset the variable.'
    )
  jax.config.update('jax_default_matmul_precision', name or variable)


def of(dtype: jnp.dtype) -> jax.lax.Precision | None:
  """The precision of a product whose factors have this dtype.

  float32 means float32, as in PyTorch. By default JAX rounds float32 factors to
  TF32 on GPUs and to bfloat16 on TPUs; who wants their speed chooses bfloat16
  activations or a precision (`use`). CPUs compute the same either
  way.
  """
  chosen = jax.config.jax_default_matmul_precision
  if dtype == jnp.float32 and chosen is None:
    return jax.lax.Precision.HIGHEST
  return None
