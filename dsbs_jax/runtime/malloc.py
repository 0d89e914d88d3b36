# SPDX-License-Identifier: Apache-2.0
"""Keeping the memory of one step for the next one, on CPU.

XLA's CPU backend asks for its buffers anew in every step. The C library gives
large ones back to the kernel at once, which then hands out cleared pages, one
fault each: over a quarter of the time of a step of gin/models/mini.gin.

The library lends to each thread from an arena of its own, but only that of the
main thread holds such buffers. So the thread that asks for a step has to be the
one that allocates for it, which JAX calls synchronous dispatch. Simulated devices
have threads of their own: there all share one arena, though matrix products then
wait for each other's scratch memory.
"""

import ctypes
import os

import jax

# <malloc.h> of the GNU C library.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_ARENA_MAX = -8
_NEVER = -1

_VARIABLE = 'DSBS_KEEP_MEMORY'


def keep_freed_memory() -> bool:
  """Lets the process keep what it frees; to be called before JAX computes.

  The process then stays as large as it was at its largest, and a computation on
  CPU ends before the call that asks for it does. `DSBS_KEEP_MEMORY=0` leaves all
  as it is.

  Returns:
    Whether it was done: not on other C libraries, nor where turned off.
  """
  if os.environ.get(_VARIABLE, '1') == '0':
    return False
  try:
    tune = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return False  # no GNU C library: nothing to tune
  settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER}
  if _simulates_devices():
    settings[_ARENA_MAX] = 1
  else:
    jax.config.update('jax_cpu_enable_async_dispatch', False)
  return all([tune(name, value) for name, value in settings.items()])


def _simulates_devices() -> bool:
  """Whether the CPU is to be more than one device."""
  flags = os.environ.get('XLA_FLAGS', '')
  return 'device_count' in flags or jax.config.jax_num_cpu_devices > 1
