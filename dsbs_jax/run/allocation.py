# SPDX-License-Identifier: Apache-2.0
"""Keeping the memory of one step for the next one, on CPU.

XLA's CPU backend asks for its buffers anew in every step. The C library gives
large ones back to the kernel at once, which then hands out cleared pages, one
fault each: a fifth of the processor time of a step of gin/models/mini.gin.
"""

import ctypes
import os

# <malloc.h> of the GNU C library.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_ARENA_MAX = -8
_NEVER = -1

_VARIABLE = 'DSBS_KEEP_MEMORY'


def keep_freed_memory() -> bool:
  """Lets the process keep what it frees; to be called before JAX computes.

  The process then stays as large as it was at its largest. `DSBS_KEEP_MEMORY=0`
  leaves the C library as it is.

  Returns:
    Whether it was done: not on other C libraries, nor where turned off.
  """
  if os.environ.get(_VARIABLE, '1') == '0':
    return False
  try:
    tune = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return False  # no GNU C library: nothing to tune
  # One arena: others are too small for such buffers and would map them.
  settings = {
    _ARENA_MAX: 1,
    _MMAP_MAX: 0,
    _TRIM_THRESHOLD: _NEVER,
  }
  return all([tune(name, value) for name, value in settings.items()])
