# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of several processes whose MODEL_DIR is in a bucket.

Each process writes its shards into a local copy that no other one sees. When
all have written, they upload them below `checkpoint_<n>.parts/<process>/`, and
process 0 fetches them into its copy, where Orbax merges them as on a shared
disk; from there the whole checkpoint is uploaded.
"""

import pathlib
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp

from dsbs_jax.data.remote import buckets, object_store

_PARTS = '.parts/'
_TEMPORARY = '.orbax-checkpoint-tmp'


def barrier(model_dir: pathlib.Path) -> Callable[..., None] | None:
  """Orbax's barrier of a background save, which exchanges parts on the way.

  None where there is nothing to exchange.
  """
  url = buckets.url_of(model_dir)
  if url is None or jax.process_count() == 1:
    return None
  meet = ocp.multihost.get_barrier_sync_fn()

  def exchange(key: str, timeout_ms: int) -> None:
    is_written = 'async_write_complete' in key
    is_whole = 'async_commit_complete' in key
    partial = next(model_dir.glob(f'*{_TEMPORARY}'), None)
    if is_written and jax.process_index():
      _upload(partial, url)
    meet(key=key, timeout_ms=timeout_ms)
    if is_written and jax.process_index() == 0:
      _collect(partial, url)
    if is_whole and jax.process_index():
      # What stands for it here: process 0 has the whole one.
      partial.rename(model_dir / partial.name.removesuffix(_TEMPORARY))

  return exchange


def prepare(checkpoint: pathlib.Path) -> None:
  """Makes the folder for which Orbax waits until process 0 has made it."""
  if jax.process_index() and buckets.url_of(checkpoint):
    partial = checkpoint.with_name(f'{checkpoint.name}{_TEMPORARY}')
    folder = partial / f'state{_TEMPORARY}' / 'array_metadatas'
    folder.mkdir(parents=True, exist_ok=True)


def remove(model_dir: str) -> None:
  """Deletes the parts that a killed run has left in a bucket."""
  found = object_store.find(model_dir)
  object_store.delete([url for url in found if _PARTS in url])


def _upload(partial: pathlib.Path, url: str) -> None:
  paths = [path for path in sorted(partial.rglob('*')) if path.is_file()]
  place = f'{url}/{partial.name}{_PARTS}{jax.process_index()}'
  if paths:
    object_store.put(
      list(map(str, paths)),
      [f'{place}/{path.relative_to(partial).as_posix()}' for path in paths],
    )


def _collect(partial: pathlib.Path, url: str) -> None:
  place = f'{url}/{partial.name}{_PARTS}'
  found = sorted(object_store.find(place.rstrip('/')))
  names = [key.removeprefix(place).partition('/')[2] for key in found]
  for name in names:
    (partial / name).parent.mkdir(parents=True, exist_ok=True)
  if found:
    object_store.get(found, [str(partial / name) for name in names])
    object_store.delete(found)
