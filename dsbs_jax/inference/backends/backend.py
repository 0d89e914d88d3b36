# SPDX-License-Identifier: Apache-2.0
"""Who computes a student's answers: the built-in engine, or CTranslate2.

BACKEND = 'auto' takes CTranslate2 in float32 on a single CPU, where it is
installed and does the work sooner. It encodes an input once per label that it
scores, the built-in engine once for all of them; with the other's faster
generation that pays up to `_MOST_OPTIONS` labels.
"""

import dataclasses
from collections.abc import Sequence

import jax

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.inference.backends import cpu_threads
from dsbs_jax.interop import ct2_model
from dsbs_jax.runtime import progress

AUTO, JAX, CT2, CT2_INT8 = BACKENDS = ('auto', 'jax', 'ct2', 'ct2_int8')
QUANTIZATIONS = {CT2: 'float32', CT2_INT8: 'int8'}

# Of inputs with choices of their own, whose number is not known.
MANY = 100

# T5 small, 2 cores, outputs of 8 tokens: generating and scoring 3 labels takes
# 0.9 of the built-in engine's CPU time, 5 labels 1.3.
_MOST_OPTIONS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
  """What is to be computed.

  Attributes:
    mesh: the setting MESH.
    generates: whether labels are decoded, not only ranked.
    num_options: outputs that are scored per input, at most; those that were
      generated count, too.
  """

  model: network.Config
  num_beams: int
  mesh: str | None
  generates: bool
  num_options: int


def choose(asked: str, work: Work) -> str:
  """The backend, never 'auto'; says which, where there is a choice.

  Args:
    asked: one of BACKENDS.

  Raises:
    UserError: CTranslate2 was asked for and cannot do it.
  """
  if asked == JAX:
    return JAX
  if asked == AUTO:
    if not ct2_model.is_installed():
      return JAX
    reasons = [*_impossible(work, CT2), *_slower(work)]
    if reasons:
      progress.say(f'backend: built-in ({reasons[0]})')
      return JAX
    asked = CT2
  else:
    ct2_model.require()
    for reason in _impossible(work, asked):
      raise contract.UserError(
        f"BACKEND is {asked!r}, but {reason}. Leave it out, or set 'jax'."
      )
  other = "; BACKEND='jax' for the built-in one" if asked == CT2 else ''
  progress.say(
    f'backend: CTranslate2 {ct2_model.version()}, {QUANTIZATIONS[asked]},'
    f' {cpu_threads.usable_cores()} threads{other}'
  )
  return asked


def _impossible(work: Work, asked: str) -> Sequence[str]:
  """Why CTranslate2 does not compute the same."""
  reasons = []
  if not isinstance(work.model, network.T5Config):
    reasons.append(f'the student is a {work.model.family}, and it runs T5 here')
  if work.num_beams > 1:
    reasons.append(f'NUM_BEAMS is {work.num_beams}, and it decodes greedily')
  if work.model.dtype != 'float32' and asked == CT2:
    reasons.append(f'ACTIVATION_DTYPE is {work.model.dtype!r}')
  if jax.process_count() > 1:
    reasons.append(f'there are {jax.process_count()} processes')
  return reasons


def _slower(work: Work) -> Sequence[str]:
  """Why the built-in engine is the better choice."""
  reasons = []
  if jax.default_backend() != 'cpu':
    reasons.append(f'the platform is {jax.default_backend()}')
  if work.mesh or jax.device_count() > 1:
    reasons.append('there are several devices')
  if not work.generates:
    reasons.append('labels are ranked, which it does sooner')
  elif work.num_options > _MOST_OPTIONS:
    reasons.append('of many labels per input it scores each sooner')
  return reasons
