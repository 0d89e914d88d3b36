# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint or an exported folder keeps of the run that made it."""

import pathlib
from typing import Any

from etils import epath

from dsbs_jax.interop import read_checkpoint, t5x_storage
from dsbs_jax.interop.hf import hf_layout
from dsbs_jax.runs import run_folder

# What an exported folder keeps of its run: the metadata of the checkpoint, and
# the run's config.
METADATA_FILE = 'run.json'
EXPORTED_CONFIG = 'training.gin'
# Key of the metadata: the step of the checkpoint that was exported.
EXPORTED_STEP = 'exported_step'


def metadata(checkpoint: pathlib.Path) -> dict[str, Any]:
  """What the run of a checkpoint was made of, {} where that is not known."""
  if not read_checkpoint.is_hugging_face(str(checkpoint)):
    return read_checkpoint.run_metadata(str(checkpoint))
  file = checkpoint / METADATA_FILE
  remedy = 'Export the run again.'
  return hf_layout.read_json(file, remedy) if file.is_file() else {}


def trained_steps(checkpoint: pathlib.Path, step: int) -> int:
  """How many steps trained a student: as export wrote down, else `step`."""
  if not is_checkpoint(checkpoint):
    return step
  return int(metadata(checkpoint).get(EXPORTED_STEP, step))


def config_file(checkpoint: pathlib.Path) -> pathlib.Path | None:
  """The config of the run that a checkpoint is of, None without one."""
  is_whole = read_checkpoint.is_hugging_face(str(checkpoint))
  folders = (checkpoint,) if is_whole else (checkpoint, checkpoint.parent)
  files = (
    folder / name
    for folder in folders
    for name in (run_folder.CONFIG_FILE, EXPORTED_CONFIG)
  )
  return next(filter(pathlib.Path.is_file, files), None)


def macros(checkpoint: pathlib.Path) -> dict[str, Any]:
  """The macros of that config that are values, not references."""
  file = config_file(checkpoint)
  found = run_folder.read_macros(file) if file else {}
  return {
    macro: value
    for macro, value in found.items()
    if not (isinstance(value, str) and value.startswith(('%', '@')))
  }


def is_checkpoint(path: pathlib.Path) -> bool:
  """Whether a folder holds parameters in a format that is known."""
  place = epath.Path(path)
  return (
    read_checkpoint.is_hugging_face(str(path))
    or t5x_storage.is_legacy(place)
    or t5x_storage.orbax_state(place) is not None
  )
