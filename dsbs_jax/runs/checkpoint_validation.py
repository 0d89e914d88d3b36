# SPDX-License-Identifier: Apache-2.0
"""Finds damaged checkpoints before a run resumes and renames them."""

import pathlib
import shutil
from collections.abc import Generator

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsbs_jax import contract
from dsbs_jax.data.remote import buckets
from dsbs_jax.interop import checksums
from dsbs_jax.runs import checkpoint_folders
from dsbs_jax.runtime import progress

# Of checkpoints that are not read, larger files are compared by size only.
_SMALL = 1 << 16  # bytes
_NONE, _ALL_DAMAGED = -1, -2


def latest_valid_step(model_dir: str) -> int | None:
  """The newest checkpoint that is not damaged, for a run to resume from.

  All files of the newest checkpoint are compared with their checksums, by each
  process a share of them; if it is damaged, those of the one before. Process 0
  says which checkpoint is next, renames damaged ones to
  `checkpoint_<n>.damaged`, prints what is wrong with each, and tells the other
  processes which step it found: None where there is no checkpoint at all.

  Raises:
    UserError: there are checkpoints, but all are damaged. They are left as
      they are: a run never starts over without a word.
  """
  folder = pathlib.Path(model_dir)
  share = jax.process_index(), jax.process_count()
  search = _search(folder)  # process 0 alone runs it
  problem, error, done, turn = None, None, False, 0
  while not done:
    found, done = _ALL_DAMAGED, True
    if share[0] == 0:
      try:
        found, done = search.send(problem), False
      except StopIteration as end:
        found = end.value
      except Exception as caught:
        error = caught  # raised below, once the other processes know
    checksums.meet(f'latest_valid_step_{turn}')
    found, done = multihost_utils.broadcast_one_to_all(np.int32([found, done]))
    if not done:
      candidate = folder / f'{checkpoint_folders.PREFIX}_{found}'
      problem = checksums.damage(candidate, share=share)
      checksums.meet(f'checkpoint_is_compared_{turn}')
      damaged = multihost_utils.process_allgather(np.bool_(problem is not None))
      if problem is None and damaged.any():  # another process's share: say what
        problem = checksums.damage(candidate)
    turn += 1
  if error is not None:
    raise error
  if found == _ALL_DAMAGED:
    raise contract.UserError(
      f'process 0 found no whole checkpoint in {model_dir}.'
    )
  if share[0] and buckets.url_of(model_dir):
    for step, own in checkpoint_folders.folders(folder).items():
      if step > found:  # process 0 has renamed it in its own copy
        shutil.rmtree(own)
  return None if found == _NONE else int(found)


def _search(model_dir: pathlib.Path) -> Generator[int, str | None, int]:
  """Yields steps whose checkpoints are to be read whole, newest first.

  Each time it is sent what is wrong with the checkpoint, or None. Returns the
  step of the newest whole one.
  """
  folders = checkpoint_folders.folders(model_dir)
  if not folders:
    return _NONE
  # A list that is missing is damage where checkpoints before it have one.
  listed = [s for s, folder in folders.items() if checksums.is_listed(folder)]
  damaged, newest = {}, None
  for step in sorted(folders, reverse=True):
    folder = folders[step]
    if step not in listed and step > min(listed, default=step):
      problem = f'{checksums.FILE} is missing'
    elif newest is None:
      problem = yield step
    else:
      problem = checksums.damage(folder, largest=_SMALL)
    if problem:
      damaged[folder] = problem
    elif newest is None:
      newest = step
  if newest is None:
    problems = '; '.join(f'{f.name}: {text}' for f, text in damaged.items())
    raise contract.UserError(
      f'all checkpoints of {model_dir} are damaged. {problems}. Put a whole one'
      ' in their place, or train in another MODEL_DIR.'
    )
  for folder, problem in damaged.items():
    progress.say(
      f'{folder.name} is damaged: {problem}. It is kept as'
      f' {_set_aside(folder).name}.'
    )
  if newest not in listed:
    name = folders[newest].name
    progress.say(f'{name} has no {checksums.FILE}: it is read unchecked')
  return newest


def _set_aside(folder: pathlib.Path) -> pathlib.Path:
  number, target = 1, folder.with_name(f'{folder.name}.damaged')
  while target.exists():
    number += 1
    target = folder.with_name(f'{folder.name}.damaged{number}')
  return folder.rename(target)
