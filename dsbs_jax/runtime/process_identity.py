# SPDX-License-Identifier: Apache-2.0
"""Tells one process from another that gets its number later."""

import contextlib
import os
import pathlib
import socket


def machine() -> str:
  """Where a number names one process: a boot of a machine, a namespace."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return socket.gethostname()


def started(pid: int) -> str | None:
  """When a process started, in ticks since the boot; None if it has ended."""
  with contextlib.suppress(PermissionError):  # it is another user's
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return None
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return ''  # a system that does not tell
  state, *rest = stat.rpartition(')')[2].split()
  return None if state in 'ZX' else rest[18]
