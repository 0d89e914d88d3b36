# SPDX-License-Identifier: Apache-2.0
"""What one platform computes in another way than the others, and precision.

GPUs and TPUs run the plain form of a function, with the gradient that JAX
derives. XLA's CPU backend is much slower at some of it, so these have a second
form for CPUs with the same result; behind each its time over the plain form's
there (docs/performance.md; `python -m bench.suite --sections choices`):

  dot_product_attention   gradient written out, fewer passes over pairs: 0.58
  norm.rms_norm           gradient written out, sums as products: 0.82
  logits_dense            gradient that copies the hidden states, 1 MB, and not
                          the logits' gradient, 100 MB: 0.95 of a whole step
  decoding.argmax         in two stages: 0.06

The other way round, accelerators select a target's logit by a sum over the
vocabulary (`cross_entropy`), in a pass that there is anyway, and CPUs gather it.

The tests hold both forms of each against each other.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsbs_jax import contract

# As JAX names them; MATMUL_PRECISION.
PRECISIONS = (
  *('default', 'high', 'highest'),
  *('bfloat16', 'tensorfloat32', 'float32'),
)
_VARIABLE = 'JAX_DEFAULT_MATMUL_PRECISION'


def choose(*args: Any, cpu: Callable, others: Callable) -> Any:
  """Calls one of two forms of a function; the program's platform decides.

  The choice is made when a program is lowered, not when it is traced: a CPU can
  compile for a TPU that is not there, and an exported program for several
  platforms holds both forms.

  Args:
    *args: arrays, or trees of them.
    cpu: what CPUs run.
    others: what all other platforms run, with the same result.
  """
  return jax.lax.platform_dependent(*args, cpu=cpu, default=others)


def joins_views(platform: str) -> bool:
  """Whether a train step joins the views of a batch, see `joined_views`.

  Accelerators gain from larger products and from fewer programs to launch. A
  CPU gains nothing, and loses memory.

  Args:
    platform: of the devices, such as 'gpu'.
  """
  return platform != 'cpu'


def use_precision(name: str | None) -> None:
  """Chooses how this process multiplies float32 factors from now on.

  Args:
    name: one of PRECISIONS; None leaves it to the variable
      JAX_DEFAULT_MATMUL_PRECISION, and without one to `precision`.

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


def precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
  """The precision of a product whose factors have this dtype.

  float32 means float32, as in PyTorch. By default JAX rounds float32 factors to
  TF32 on GPUs and to bfloat16 on TPUs; who wants their speed chooses bfloat16
  activations or a precision (`use_precision`). CPUs compute the same either
  way.
  """
  chosen = jax.config.jax_default_matmul_precision
  if dtype == jnp.float32 and chosen is None:
    return jax.lax.Precision.HIGHEST
  return None
