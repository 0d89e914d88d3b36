# SPDX-License-Identifier: Apache-2.0
"""Runs of several processes: connecting them, and noticing a lost one."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsbs_jax import contract
from dsbs_jax.runtime import folder_lock

_NUMBERS = ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
_ADDRESS = 'JAX_COORDINATOR_ADDRESS'
# After so long without a heartbeat a process counts as dead; the others end.
HEARTBEAT_SECONDS = 30
# How long a failed process waits for the others to end.
SHUTDOWN_SECONDS = 30
_LOST = re.compile('gloo|nccl|unavailable|deadline_exceeded|aborted|connection')


def join(distributed: bool) -> None:
  """Connects this process with the others, if the run has several.

  On TPU pods, Slurm and Open MPI JAX finds the others by itself. Elsewhere
  JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
  JAX_PROCESS_ID (from 0) say who they are.

  Raises:
    UserError: the environment tells a part of it only, or JAX finds nobody.
  """
  if not distributed:
    return
  given = {name: os.environ.get(name) for name in (_ADDRESS, *_NUMBERS)}
  missing = [name for name, value in given.items() if not value]
  if 0 < len(missing) < len(given):
    raise contract.UserError(
      f'{", ".join(missing)} is not set, expected all of {", ".join(given)}, or'
      ' none where JAX finds the processes by itself.'
    )
  for name in _NUMBERS:
    if given[name] and not given[name].isdecimal():
      raise contract.UserError(
        f'{name} is {given[name]!r}, expected a whole number >= 0.'
      )
  known = (
    [] if missing else [given[_ADDRESS], *(int(given[n]) for n in _NUMBERS)]
  )
  try:
    jax.distributed.initialize(
      *known,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    raise contract.UserError(
      f'the processes of the run did not meet: {error}'
    ) from error


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Turns the loss of another process into one line.

  JAX ends this process in any case: at once if process 0 is gone, which keeps
  the list of all, else when process 0 has missed the other's heartbeats for
  HEARTBEAT_SECONDS; its last lines then tell the number of the lost process.

  Raises:
    UserError: a computation of all processes failed because one is gone.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).partition('\n')[0]
    if jax.process_count() == 1 or not _LOST.search(reason.lower()):
      raise
    raise contract.UserError(
      f'process {jax.process_index()} of {jax.process_count()} has lost another'
      f' one ({reason}). Which one it is stands below within'
      f' {HEARTBEAT_SECONDS} s. Start all of them again: they go on from the'
      ' newest checkpoint.'
    ) from error


def broadcast(value: Any) -> Any:
  """The JSON value of process 0, on every process."""
  if jax.process_count() == 1:
    return value
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
  if jax.process_index():
    text = np.zeros(size, np.uint8)
  return json.loads(bytes(multihost_utils.broadcast_one_to_all(text)))


@contextlib.contextmanager
def hold(lock: folder_lock.FolderLock) -> Iterator[None]:
  """Process 0 holds a lock for all of a run.

  Raises:
    UserError: it was refused; on every process.
  """
  if jax.process_count() == 1:
    with folder_lock.hold(lock):
      yield
    return
  refusal = None  # JAX handles SIGTERM
  if jax.process_index() == 0:
    try:
      lock.acquire()
    except contract.UserError as error:
      refusal = str(error)
  try:
    if refusal := broadcast(refusal):
      raise contract.UserError(refusal)
    yield
  finally:
    lock.release()
