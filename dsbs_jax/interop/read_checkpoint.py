# SPDX-License-Identifier: Apache-2.0
"""Reads parameters of any known format: T5X, Hugging Face, our own runs."""

import pathlib
from typing import Any

import jax
from etils import epath

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.data.remote import buckets, object_store
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.interop import (
  checksums,
  same_network,
  t5x_read_checkpoint,
  t5x_storage,
)
from dsbs_jax.interop.hf import hf_layout

_PLAIN_TEXT = 'the quick brown fox jumps over the lazy dog'


def load_params(
  path: str | pathlib.PurePath,
  config: network.Config,
  *,
  shardings: Any = None,
  vocabulary: vocabularies.Vocabulary | None = None,
  allow_pickle: bool = False,
) -> Any:
  """Reads parameters from a checkpoint of any known format, as float32.

  Args:
    path: a T5X checkpoint (legacy or Orbax), a run of T5X or of this project
      (its newest checkpoint), or a folder in Hugging Face's format.
    config: the network to be filled.
    shardings: a sharding per parameter; each device reads its own part. None
      reads NumPy arrays.
    vocabulary: the one in use; compared where the checkpoint says which one it
      was trained with, or has a tokenizer beside it.
    allow_pickle: whether a Hugging Face folder may hold a pickled
      pytorch_model.bin, read by torch's weights-only loader.

  Raises:
    UserError: no such checkpoint, a damaged one, or one of another network or
      vocabulary.
  """
  path = str(_local(str(path)))
  if is_hugging_face(path):
    params = _load_hugging_face(path, config, shardings, allow_pickle)
    if vocabulary is not None:
      _check_tokenizer(path, vocabulary)
    return params
  folder = t5x_read_checkpoint.find(path)
  checksums.check(folder, share=(jax.process_index(), jax.process_count()))
  if vocabulary is not None:
    trained_with = run_metadata(folder).get('vocabulary')
    if trained_with not in (None, vocabulary.fingerprint):
      raise contract.UserError(
        f'{folder!r} was trained with vocabulary {trained_with}, the one in use'
        f' is {vocabulary.fingerprint}: ids would mean other pieces. Set'
        ' VOCABULARY to the one of the checkpoint. One that prepare has'
        ' replaced lies in the folder vocabularies/replaced of the data.'
      )
  same_network.check(config, stated_network(folder), folder)
  params = t5x_read_checkpoint.load_params(folder, config, shardings=shardings)
  checksums.meet('load_params')
  return params


def _load_hugging_face(
  path: str, config: network.Config, shardings: Any, allow_pickle: bool
) -> Any:
  # Imported here: no other format needs safetensors.
  from dsbs_jax.interop.hf import hf_checkpoint

  params = hf_checkpoint.load_params(path, config, allow_pickle=allow_pickle)
  if shardings is None:
    return params
  return jax.tree.map(
    lambda array, sharding: jax.make_array_from_callback(
      array.shape, sharding, array.__getitem__
    ),
    params,
    shardings,
  )


def _local(path: str) -> str | pathlib.Path:
  """What is read: of a folder in a bucket, the copy here.

  TensorStore reads T5X's format in gs:// itself, each device its own part.
  """
  if not object_store.is_bucket(path) or (
    path.startswith('gs://') and not is_hugging_face(path)
  ):
    return path
  found = buckets.fetch(path)
  if not found.exists():
    raise contract.UserError(
      f'there is nothing at {path!r}, expected a checkpoint. Correct'
      ' INITIAL_CHECKPOINT_PATH.'
    )
  return found


def _check_tokenizer(path: str, vocabulary: vocabularies.Vocabulary) -> None:
  """Raises where a folder's own tokenizer gives plain text other ids."""
  files = ('spiece.model', 'tokenizer.json', 'tokenizer_config.json')
  if not any((epath.Path(path) / name).is_file() for name in files):
    return
  try:
    theirs = vocabularies.load(path)
  except contract.UserError:
    return  # of a kind that is not read here: nothing to compare with
  found = (theirs.encode(_PLAIN_TEXT), vocabulary.encode(_PLAIN_TEXT))
  if found[0] != found[1]:
    raise contract.UserError(
      f'{path} has a tokenizer of its own, which gives {_PLAIN_TEXT!r} the ids'
      f' {found[0][:5]}..., the vocabulary in use {found[1][:5]}...: ids would'
      f' mean other pieces. Set VOCABULARY={path!r}.'
    )


def is_hugging_face(path: str) -> bool:
  """Whether a folder is in Hugging Face's format; UserError for an adapter."""
  folder = epath.Path(path)
  if (folder / 'adapter_config.json').is_file() and not (
    list(folder.glob('model*.safetensors*'))
    or list(folder.glob('pytorch_model*'))
  ):
    raise contract.UserError(
      f'{path} is an adapter (adapter_config.json), not a model: merge it'
      ' first, in PEFT by merge_and_unload() and save_pretrained().'
    )
  return (folder / 'config.json').is_file()


def stated_network(folder: str) -> dict[str, Any]:
  """Fields of T5Config that a T5X checkpoint, or one of ours, states."""
  return run_metadata(folder).get('model') or same_network.read_gin(folder)


def run_metadata(folder: str) -> dict[str, Any]:
  """What a run was made of, as the built-in engine wrote; else {}."""
  checksums.check(folder, below=f'{t5x_storage.RUN_METADATA[0]}/')
  file = epath.Path(folder).joinpath(*t5x_storage.RUN_METADATA)
  remedy = 'Take another checkpoint of the run.'
  return hf_layout.read_json(file, remedy) if file.is_file() else {}
