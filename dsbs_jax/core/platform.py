# SPDX-License-Identifier: Apache-2.0
"""What one platform computes in another way than the others.

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

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

_TRACED_FOR = jax.make_user_context()


def choose(*args: Any, cpu: Callable, others: Callable) -> Any:
  """Calls one of two forms of a function; the program's platform decides.

  Within `traced_for` the choice is made at once. Elsewhere it is made when a
  program is lowered, not when it is traced: an exported program for several
  platforms holds both forms.

  Args:
    *args: arrays, or trees of them.
    cpu: what CPUs run.
    others: what all other platforms run, with the same result.
  """
  known = _TRACED_FOR.value
  if known is not None:
    return (cpu if known == 'cpu' else others)(*args)
  return jax.lax.platform_dependent(*args, cpu=cpu, default=others)


@contextlib.contextmanager
def traced_for(platform: str) -> Iterator[None]:
  """What is traced within it is for one platform: only one form is traced.

  Tracing and lowering a train step of two layers takes 0.65 s in place of 0.9.
  The context is part of JAX's keys for what it traced before. The devices of
  the platform, such as 'tpu', need not be there.
  """
  with _TRACED_FOR(platform):
    yield
