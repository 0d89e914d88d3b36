# SPDX-License-Identifier: Apache-2.0
"""Objects of gs:// and s3:// buckets, by fsspec (gcsfs, s3fs).

The only file that calls a store. A call that fails because the store is
unavailable is made again; one that is refused is an error that says so.
"""

import contextlib
import functools
import importlib.util
import os
import time
from collections.abc import Sequence
from typing import Any

from dsbs_jax import contract

# Scheme -> the package that fsspec needs, and our extra that installs it.
_PACKAGES = {'gs': ('gcsfs', 'gcs'), 's3': ('s3fs', 's3'), 'memory': None}
SCHEMES = tuple(_PACKAGES)
# How long an unavailable store is asked again, and the longest pause between.
RETRY_SECONDS, _LONGEST_PAUSE = 300.0, 16.0


class StoreError(contract.UserError):
  """A store that cannot be reached, or refuses."""


def is_bucket(path: Any) -> bool:
  """Whether a path names an object or a folder in a bucket."""
  scheme, separator, _ = str(path).partition('://')
  return bool(separator) and scheme in _PACKAGES


def absolute(path: str) -> str:
  """A path that means the same in another working directory."""
  return path if is_bucket(path) else os.path.abspath(os.path.expanduser(path))


def is_installed(scheme: str) -> bool:
  """Whether the package that reads such buckets is there."""
  package = _PACKAGES[scheme]
  return package is None or importlib.util.find_spec(package[0]) is not None


def _key(url: str) -> str:
  return url.partition('://')[2].strip('/')


@functools.cache
def _filesystem(scheme: str) -> Any:
  import fsspec  # imported here: most commands open no bucket

  if not is_installed(scheme):
    package, extra = _PACKAGES[scheme]
    raise contract.UserError(
      f'{package} is not installed, expected it for {scheme}://. Install the'
      f" extra {extra!r}: pip install -e '.[{extra}]'."
    )
  return fsspec.filesystem(scheme, use_listings_cache=False)


def _call(url: str, method: str, *args: Any, **options: Any) -> Any:
  """Calls a method of the store; asks again while it is unavailable.

  Raises:
    FileNotFoundError: there is no such object, or no such bucket.
    FileExistsError: there is one already, where a new one was asked for.
    StoreError: it refuses, or was unavailable for RETRY_SECONDS.
  """
  call = getattr(_filesystem(url.partition('://')[0]), method)
  started, pause = time.monotonic(), 1.0
  while True:
    try:
      return call(*args, **options)
    except (FileNotFoundError, FileExistsError):
      raise
    except Exception as error:
      waited = time.monotonic() - started
      if not _is_transient(error) or waited > RETRY_SECONDS:
        raise _explained(url, error, waited) from error
    time.sleep(pause)
    pause = min(2 * pause, _LONGEST_PAUSE)


def _is_transient(error: BaseException) -> bool:
  """Whether the same call may succeed later."""
  cause = error.__cause__
  about = getattr(cause, 'response', None)
  if isinstance(about, dict):  # of botocore; that of requests is no dict
    about = about.get('ResponseMetadata', {}).get('HTTPStatusCode')
  code = getattr(error, 'code', None) or about
  if str(code).isdigit():
    return int(code) in (408, 429) or int(code) >= 500
  # Connections that break, in the words of aiohttp, requests and botocore; of
  # google.auth, what it was raised from says so.
  kinds = (*type(error).__mro__, *type(cause).__mro__)
  return not {kind.__name__ for kind in kinds}.isdisjoint(
    (
      *('ClientConnectionError', 'ClientPayloadError', 'TimeoutError'),
      *('ConnectionError', 'HTTPClientError', 'ProxyError', 'Timeout'),
    )
  )


def _explained(url: str, error: BaseException, waited: float) -> StoreError:
  text = ' '.join(str(error).split())[:200] or type(error).__name__
  if _is_transient(error):
    return StoreError(
      f'{url}: the store has not answered for {waited:.0f} s ({text}), expected'
      ' one that is available. What was uploaded before is whole; the same'
      ' command goes on from it.'
    )
  return StoreError(
    f'{url}: the store refuses ({text}), expected a bucket that this account'
    ' may read and, for what is written, write. Check the credentials (gs://:'
    ' GOOGLE_APPLICATION_CREDENTIALS; s3://: AWS_PROFILE or AWS_ACCESS_KEY_ID)'
    ' and its permissions.'
  )


def find(url: str) -> dict[str, dict[str, Any]]:
  """URL -> what the store says of it, of an object or all below a folder."""
  scheme = url.partition('://')[0]
  try:
    found = _call(url, 'find', _key(url), detail=True)
  except FileNotFoundError as error:
    raise _no_bucket(url) from error
  return {
    f'{scheme}://{key.strip("/")}': about
    for key, about in found.items()
    if about['type'] == 'file' and not key.endswith('/')
  }


def get(urls: Sequence[str], paths: Sequence[str]) -> None:
  """Fetches objects at the same time; StoreError where one is not there."""
  try:
    _call(urls[0], 'get', list(map(_key, urls)), list(paths))
  except FileNotFoundError as error:
    raise StoreError(
      f'{urls[0]} or another was deleted while it was fetched ({error}). Try'
      ' again.'
    ) from error


def put(paths: Sequence[str], urls: Sequence[str]) -> None:
  """Uploads files at the same time."""
  try:
    _call(urls[0], 'put', list(paths), list(map(_key, urls)))
  except FileNotFoundError as error:
    raise _no_bucket(urls[0]) from error


def delete(urls: Sequence[str]) -> None:
  """Deletes objects of one store, where they are there."""
  if urls:
    with contextlib.suppress(FileNotFoundError):
      _call(urls[0], 'rm', list(map(_key, urls)))


def names(url: str) -> list[str]:
  """The names in a folder of a bucket."""
  with contextlib.suppress(FileNotFoundError):
    found = _call(url, 'ls', _key(url), detail=False)
    return sorted(key.strip('/').rpartition('/')[2] for key in found)
  return []


def create(url: str, content: bytes) -> bool:
  """Writes an object that was not there; returns whether it was not."""
  try:
    write(url, content, mode='create')
  except FileExistsError:
    return False
  return True


def write(url: str, content: bytes, **options: str) -> None:
  """Writes an object, there before or not; errors as those of `_call`."""
  try:
    _call(url, 'pipe_file', _key(url), content, **options)
  except FileNotFoundError as error:
    raise _no_bucket(url) from error


def read(url: str) -> bytes:
  """The contents of an object; FileNotFoundError where there is none."""
  return _call(url, 'cat_file', _key(url))


def remove(url: str) -> None:
  """Deletes an object, if it is there."""
  with contextlib.suppress(FileNotFoundError):
    _call(url, 'rm_file', _key(url))


def modified(url: str) -> float:
  """When an object was written, in seconds since 1970."""
  return _call(url, 'modified', _key(url)).timestamp()


def _no_bucket(url: str) -> StoreError:
  return StoreError(
    f'{url}: there is no such bucket, expected one that exists. Make it, or'
    ' correct the path.'
  )
