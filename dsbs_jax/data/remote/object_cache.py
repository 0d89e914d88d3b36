# SPDX-License-Identifier: Apache-2.0
"""Objects of buckets that were fetched, for all processes of this machine.

Each is a file named by a digest of its URL and of what the store says of its
version. Those that nobody uses for a month are removed.
"""

import contextlib
import hashlib
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from dsbs_jax.data.remote import object_store

_KEPT_SECONDS = 30 * 24 * 3600  # of a cached file that nobody uses
# What an object's version may be called in a store's listing.
_VERSION = ('generation', 'etag', 'ETag', 'md5Hash', 'crc32c', 'created')


def folder() -> pathlib.Path:
  """$DSBS_CACHE, or ~/.cache/dsbs: objects are in a folder of it."""
  given = os.environ.get('DSBS_CACHE')
  return pathlib.Path(given or '~/.cache/dsbs').expanduser().absolute()


def remove_unused() -> None:
  """Removes the files that nobody has used for long."""
  for blob in (folder() / 'objects').glob('*'):
    with contextlib.suppress(OSError):
      if time.time() - blob.stat().st_mtime > _KEPT_SECONDS:
        blob.unlink()


def version(about: Mapping[str, Any]) -> str:
  """What changes with an object's contents, of a store's listing."""
  return repr([about['size'], *(str(about.get(key)) for key in _VERSION)])


def get(
  wanted: Mapping[str, Mapping[str, Any]], uncached: pathlib.Path | None = None
) -> dict[str, pathlib.Path]:
  """Fetches objects at the same time, those that are not in the cache.

  Args:
    wanted: URL -> what the store's listing says of it.
    uncached: a folder to fetch them to instead of the cache.

  Raises:
    StoreError: the store refuses or is unavailable, or a part is missing.
  """
  place = uncached or folder() / 'objects'
  place.mkdir(parents=True, exist_ok=True)
  blobs = {
    key: place / hashlib.sha256(f'{key} {version(about)}'.encode()).hexdigest()
    for key, about in wanted.items()
  }
  missing = [key for key in wanted if not blobs[key].exists()]
  parts = {key: f'{blobs[key]}.{os.getpid()}' for key in missing}
  if parts:
    object_store.get(missing, list(parts.values()))
  for key, part in parts.items():
    if (size := os.path.getsize(part)) != wanted[key]['size']:
      raise object_store.StoreError(
        f'{key}: {size:,} bytes came, expected {wanted[key]["size"]:,}. Try'
        ' again.'
      )
    os.replace(part, blobs[key])
  return blobs
