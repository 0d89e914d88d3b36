# SPDX-License-Identifier: Apache-2.0
"""The checkpoints in a run's folder: latest, best, or one by its number."""

import pathlib
import re

from dsbs_jax import contract
from dsbs_jax.data.remote import buckets, object_store
from dsbs_jax.runs import checkpoint_scores

PREFIX = 'checkpoint'
_STEP = re.compile(rf'{PREFIX}_(\d+)')


def folders(model_dir: pathlib.Path) -> dict[int, pathlib.Path]:
  """The checkpoints of a run by step, whole or not; none that is set aside."""
  matches = ((_STEP.fullmatch(p.name), p) for p in model_dir.glob('*'))
  return {int(match[1]): path for match, path in matches if match}


def find_checkpoint(
  checkpoint_path: str, step: str | int, *, arrays: bool = True
) -> tuple[pathlib.Path, int]:
  """Turns a run's folder and a choice of step into one checkpoint.

  Args:
    checkpoint_path: a run's folder or any one checkpoint.
    step: 'latest', 'best' or a number; for a run's folder only.
    arrays: whether those of one in a bucket are fetched.

  Returns:
    The checkpoint's folder (of one in a bucket, its copy here) and its step (0
    where its name has none).

  Raises:
    UserError: the folder or the step does not exist, or the best is asked for
      where none was evaluated.
  """
  path = local_copy(checkpoint_path)
  if not any(path.glob(f'{PREFIX}_*')):
    if not path.exists():
      raise contract.UserError(
        f'there is no checkpoint at {str(path)!r}. Check CHECKPOINT_PATH.'
      )
    if arrays:
      buckets.complete(path)
    numbered = _STEP.fullmatch(path.name)
    return path, int(numbered[1]) if numbered else 0
  saved, choice = folders(path), step
  if step == 'latest':
    choice = max(saved, default=None)
  elif step == 'best':
    choice = checkpoint_scores.best_step(saved)
  folder = path / f'{PREFIX}_{choice}'
  if not folder.is_dir():
    names = sorted(p.name for p in path.glob(f'{PREFIX}_*'))
    raise contract.UserError(
      f'step is {step!r}, expected latest, best or the number of one of'
      f' {names}.'
    )
  if arrays:
    buckets.complete(folder)
  return folder, int(choice)


def local_copy(checkpoint_path: str) -> pathlib.Path:
  """Its folder here; of one in a bucket a copy, as yet without arrays."""
  if not object_store.is_bucket(checkpoint_path):
    return pathlib.Path(checkpoint_path).absolute()
  path = buckets.fetch(checkpoint_path, arrays=False)
  if _STEP.fullmatch(path.name):  # what is beside it says more
    buckets.fetch(
      f'{checkpoint_path.rstrip("/").rpartition("/")[0]}/config.gin'
    )
  return path


def describe_choice(checkpoint_path: str, step: str | int) -> str:
  """What a run's folder leaves to choose: ' (latest; ...)', else ''."""
  saved = folders(local_copy(checkpoint_path))
  if step != 'latest' or not saved:
    return '' if step != 'best' else ' (best on validation)'
  accuracies = checkpoint_scores.accuracies(saved)
  best = checkpoint_scores.best(accuracies, accuracies)
  if best is None:
    return ' (latest; none was evaluated)'
  if best == max(saved):
    return ' (latest, and best on validation)'
  return f' (latest; best on validation: --step={best})'
