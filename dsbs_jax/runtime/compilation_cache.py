# SPDX-License-Identifier: Apache-2.0
"""JAX's persistent compilation cache, on by default in a per-user folder."""

import os
import pathlib

import jax

_VARIABLE = 'JAX_COMPILATION_CACHE_DIR'


def user_folder() -> pathlib.Path:
  """Where this project keeps what it can make again, per user."""
  base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(base) / 'dsbs_jax'


def use_cache() -> None:
  """Keeps compiled programs on disk for later processes of this user.

  `JAX_COMPILATION_CACHE_DIR` names another folder; empty, it turns the cache
  off.
  """
  folder = os.environ.get(_VARIABLE)
  if folder is None:
    folder = str(user_folder() / 'compiled')
  if folder:
    jax.config.update('jax_compilation_cache_dir', folder)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
