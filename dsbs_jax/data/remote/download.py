# SPDX-License-Identifier: Apache-2.0
"""Downloads that go on after an interruption and are checked at the end."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import pathlib
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator

from dsbs_jax import contract

# The archive of the paper's authors, at the commit that added it.
PUBLISHED = (
  'https://github.com/google-research/distilling-step-by-step/raw/'
  'ef944263c9ddfd40a9888557f3e7d17513fd1a7e/datasets.zip'
)
# The vocabulary of the public T5 checkpoints.
T5_VOCABULARY = 'gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model'
# URL -> 'sha256:<hex>', or 'git:<hex>', the id that git gives the contents.
CHECKSUMS = {
  PUBLISHED: 'git:fb9d88a0b44c2daac1ec1639f0bdae993e7e5bcd',
  T5_VOCABULARY: 'sha256:'
  'd60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86',
}

MAX_BYTES = 16 << 30
TIMEOUT_SECONDS = 60
NUM_TRIES = 6
_CHUNK_BYTES = 1 << 18
_STRONG_ETAG = re.compile(r'"[!#-~]*"')
# Worth another try: the connection broke, or the server is overloaded. Errors
# of the disk are not among them.
_BROKEN = (
  http.client.HTTPException,
  urllib.error.URLError,
  ConnectionError,
  TimeoutError,
)
_BUSY = (408, 429, 500, 502, 503, 504)

Progress = Callable[[int, int | None], None]


def fetch(
  url: str,
  folder: str | pathlib.Path,
  *,
  name: str | None = None,
  checksum: str | None = None,
  check: Callable[[pathlib.Path], object] | None = None,
  num_tries: int = NUM_TRIES,
  progress: Progress | None = None,
  wait: Callable[[float], None] = time.sleep,
) -> pathlib.Path:
  """Downloads a file, or goes on where an earlier attempt broke off.

  Args:
    url: http(s)://host/.../file or gs://bucket/.../file; the latter is read
      over https, or from STORAGE_EMULATOR_HOST.
    folder: where the file comes to lie. Until it is whole and checked, it is
      `<name>.part`.
    name: the file's name there; None takes the URL's last part.
    checksum: 'sha256:<hex>' or 'git:<hex>'; None takes the known one of the
      URL, if any.
    check: reads the whole file; its UserError says that this is another file
      than was asked for, such as the page of a login.
    num_tries: tries in a row that may fail without a new byte.
    progress: called with the bytes on disk and the expected total (or None).
    wait: called with the seconds to wait before another try.

  Raises:
    UserError: a bad URL, an answer that says no, a file over `MAX_BYTES`,
      contents that differ from the checksum or fail the check, or too many
      failed tries.
  """
  checksum = checksum or CHECKSUMS.get(url)
  address = _address(url)
  last = urllib.parse.unquote(urllib.parse.urlsplit(address).path)
  name = name or pathlib.PurePosixPath(last).name
  if not name:
    raise _no_url(url)
  path = pathlib.Path(folder).expanduser() / name
  path.parent.mkdir(parents=True, exist_ok=True)
  with _alone_in(path.parent):
    if path.is_file():
      _verify(path, checksum, url, check=check)
      return path
    part = path.with_name(path.name + '.part')
    failures = 0
    while True:
      before = _size(part)
      error = _try(address, part, checked=checksum is not None, tell=progress)
      if error is None:
        break
      failures = 0 if _size(part) > before else failures + 1
      if failures >= num_tries:
        remedy = 'Check the connection.'
        if have := _size(part):
          remedy = f'The {have:,} bytes that came are kept in {part}: run it'
          remedy += ' again to go on.'
        raise contract.UserError(
          f'{url} could not be read after {failures} tries ({error}). {remedy}'
        )
      wait(min(30.0, 0.5 * 2**failures))
    _verify(part, checksum, url, check=check)
    part.rename(path)
    _etag_file(part).unlink(missing_ok=True)
    return path


def _address(url: str) -> str:
  """Where a URL is read over http(s)."""
  address = url
  if url.startswith('gs://'):
    host = os.environ.get('STORAGE_EMULATOR_HOST')
    host = host or 'https://storage.googleapis.com'
    address = f'{host}/{url.removeprefix("gs://")}'
  parsed = urllib.parse.urlsplit(address)
  if parsed.scheme not in ('http', 'https') or not parsed.netloc:
    raise _no_url(url)
  return address


def _no_url(url: str) -> contract.UserError:
  return contract.UserError(
    f'The URL is {url!r}, expected http(s)://host/.../file or'
    ' gs://bucket/file. Check it.'
  )


@contextlib.contextmanager
def _alone_in(folder: pathlib.Path) -> Iterator[None]:
  """Waits for other processes: two would write into one another's part."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)


def _try(
  url: str, part: pathlib.Path, *, checked: bool, tell: Progress | None
) -> object:
  """One request for what is missing; None if it is whole, else why not."""
  request = urllib.request.Request(url, headers={'Accept-Encoding': 'identity'})
  etag = _etag(part)
  # Without either, bytes of two versions could be glued together.
  if _size(part) and (etag or checked):
    request.add_header('Range', f'bytes={_size(part)}-')
    if etag:
      request.add_header('If-Range', etag)
  try:
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
      return _save(response, part, url, tell=tell)
  except urllib.error.HTTPError as error:
    if error.code == 416:  # the file has become shorter: from the start again
      part.unlink()
    elif error.code not in _BUSY:
      raise contract.UserError(
        f'{url} answers {error.code} {error.reason}, expected the file. Check'
        ' the URL.'
      ) from error
    return error
  except _BROKEN as error:
    return error


def _save(
  response: http.client.HTTPResponse,
  part: pathlib.Path,
  url: str,
  *,
  tell: Progress | None,
) -> str | None:
  """Writes a response to the part; None if it is whole then, else why not."""
  have = _size(part) if response.status == 206 else 0
  found = response.headers.get('Content-Range', '')
  if have and not found.startswith(f'bytes {have}-'):
    return f'the server sent the range {found!r}'
  length = response.headers.get('Content-Length', '')
  total = have + int(length) if length.isdigit() else None
  _etag_file(part).write_text(response.headers.get('ETag', ''))
  with open(part, 'ab' if have else 'wb') as file:
    while chunk := response.read(_CHUNK_BYTES):
      have += file.write(chunk)
      if max(have, total or 0) > MAX_BYTES:
        raise contract.UserError(
          f'{url} has {max(have, total or 0):,} bytes or more, expected at most'
          f' {MAX_BYTES:,}. Download it by hand if it is right.'
        )
      if tell is not None:
        tell(have, total)
  return None if total in (None, have) else 'the connection ended early'


def _size(path: pathlib.Path) -> int:
  return path.stat().st_size if path.is_file() else 0


def _etag_file(part: pathlib.Path) -> pathlib.Path:
  """Holds what the server called the version that a part belongs to."""
  return part.with_name(part.name + '.etag')


def _etag(part: pathlib.Path) -> str:
  """That name; '' where it is weak, or a kill has cut it short."""
  file = _etag_file(part)
  text = file.read_bytes().decode('latin-1') if file.is_file() else ''
  return text if _STRONG_ETAG.fullmatch(text) else ''


def _verify(
  path: pathlib.Path,
  checksum: str | None,
  url: str,
  *,
  check: Callable[[pathlib.Path], object] | None,
) -> None:
  """Holds a file to its checksum and check, and removes it if it fails."""
  try:
    if checksum is not None:
      _compare(path, checksum)
    if check is not None:
      check(path)
  except contract.UserError as error:
    path.unlink()
    _etag_file(path).unlink(missing_ok=True)
    raise contract.UserError(
      f'{url} came as another file ({error}) The download was removed: get it'
      ' again.'
    ) from error


def _compare(path: pathlib.Path, checksum: str) -> None:
  kind, expected = checksum.split(':')
  digest = {'sha256': hashlib.sha256, 'git': hashlib.sha1}[kind]()
  if kind == 'git':
    digest.update(b'blob %d\0' % _size(path))
  with open(path, 'rb') as file:
    hashlib.file_digest(file, lambda: digest)
  if digest.hexdigest() != expected:
    raise contract.UserError(
      f'the {kind} checksum is {digest.hexdigest()}, expected {expected}.'
    )
