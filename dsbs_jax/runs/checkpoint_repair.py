# SPDX-License-Identifier: Apache-2.0
"""Finds damaged checkpoints before a run resumes and renames them."""

import pathlib
import shutil

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsbs_jax import contract
from dsbs_jax.data import buckets
from dsbs_jax.interop import checksums
from dsbs_jax.runs import checkpoints
from dsbs_jax.runtime import progress

# Of checkpoints that are not read, larger files are compared by size only.
_SMALL = 1 << 16  # bytes
_NONE, _ALL_DAMAGED = -1, -2


def latest_valid_step(model_dir: str) -> int | None:
  """The newest checkpoint that is not damaged, for a run to resume from.

  Process 0 compares all files of the newest checkpoint with their checksums,
  and, if it is damaged, those of the one before. It renames damaged ones to
  `checkpoint_<n>.damaged`, prints what is wrong with each, and tells the other
  processes which step it found: None where there is no checkpoint at all.

  Raises:
    UserError: there are checkpoints, but all are damaged. They are left as
      they are: a run never starts over without a word.
  """
  found, error = _ALL_DAMAGED, None
  if jax.process_index() == 0:
    try:
      found = _choose(pathlib.Path(model_dir))
    except Exception as caught:
      error = caught  # raised below, once the other processes know
  checksums.meet('latest_valid_step')
  found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
  if error is not None:
    raise error
  if found == _ALL_DAMAGED:
    raise contract.UserError(
      f'process 0 found no whole checkpoint in {model_dir}.'
    )
  if jax.process_index() and buckets.url_of(model_dir):
    for step, folder in checkpoints.folders(pathlib.Path(model_dir)).items():
      if step > found:  # process 0 has renamed it in its own copy
        shutil.rmtree(folder)
  return None if found == _NONE else found


def _choose(model_dir: pathlib.Path) -> int:
  folders = checkpoints.folders(model_dir)
  if not folders:
    return _NONE
  # A list that is missing is damage where checkpoints before it have one.
  listed = [s for s, folder in folders.items() if checksums.is_listed(folder)]
  damaged, newest = {}, None
  for step in sorted(folders, reverse=True):
    folder = folders[step]
    largest = None if newest is None else _SMALL
    problem = checksums.damage(folder, largest=largest)
    if step not in listed and step > min(listed, default=step):
      problem = f'{checksums.FILE} is missing'
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
