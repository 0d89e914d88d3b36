# SPDX-License-Identifier: Apache-2.0
"""Joining the other processes of a run, before anything else touches JAX."""

import os

import jax

_NUMBERS = ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
_ADDRESS = 'JAX_COORDINATOR_ADDRESS'


def join(distributed: bool) -> None:
  """Connects this process with the others of the run.

  On TPU pods, Slurm and Open MPI JAX finds the others by itself. Elsewhere
  JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
  JAX_PROCESS_ID (from 0) say who they are.

  Args:
    distributed: whether the run has several processes.

  Raises:
    ValueError: the environment tells a part of it only, or JAX finds nobody.
  """
  if not distributed:
    return
  given = {name: os.environ.get(name) for name in (_ADDRESS, *_NUMBERS)}
  missing = [name for name, value in given.items() if not value]
  if 0 < len(missing) < len(given):
    raise ValueError(
      f'{", ".join(missing)} is not set, expected all of {", ".join(given)}, or'
      ' none where JAX finds the processes by itself.'
    )
  try:
    if missing:
      jax.distributed.initialize()
    else:
      jax.distributed.initialize(given[_ADDRESS], *_integers(given))
  except RuntimeError as error:
    raise ValueError(
      f'the processes of the run did not meet: {error}'
    ) from error


def _integers(given: dict[str, str]) -> list[int]:
  return [int(given[name]) for name in _NUMBERS]
