# SPDX-License-Identifier: Apache-2.0
"""CPU only: memory that one step frees is kept for the next one.

XLA's CPU backend allocates its buffers anew in every step. glibc gives large
ones back to the kernel at once, which then hands out cleared pages, one page
fault each: over a quarter of the time of a step of gin/models/mini.gin.

glibc allocates for each thread from an arena of its own, and only the arena of
the main thread can hold buffers of this size. So the thread that starts a step
has to allocate for it: JAX's synchronous dispatch. Simulated devices have
threads of their own. They share one arena, though matrix products then wait
for each other's scratch memory.
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
  """Lets a process that computes on CPU keep the memory that it frees.

  To be called before JAX computes anything. The process then stays as large as
  it was at its largest. `DSBS_KEEP_MEMORY=0` turns this off.

  Returns:
    Whether it was done: not on accelerators, not without glibc.
  """
  if os.environ.get(_VARIABLE, '1') == '0':
    return False
  mallopt = _mallopt()
  if mallopt is None:
    return False
  flags = os.environ.get('XLA_FLAGS', '')
  if 'device_count' in flags or jax.config.jax_num_cpu_devices > 1:
    # The CPU is to be several devices, whose threads JAX has not yet started.
    mallopt(_ARENA_MAX, 1)
  else:
    jax.config.update('jax_cpu_enable_async_dispatch', False)
  if jax.default_backend() != 'cpu':
    return False
  settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER}
  return all([mallopt(name, value) for name, value in settings.items()])


def _mallopt():
  """The function of the GNU C library, None on other systems."""
  try:
    return ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return None
