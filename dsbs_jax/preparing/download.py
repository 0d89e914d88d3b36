# SPDX-License-Identifier: Apache-2.0
"""Downloads that survive interruptions and are checked at the end."""

import hashlib
import http.client
import json
import pathlib
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

from dsbs_jax import contract

# The archive of the paper's authors, at the commit that added it.
PUBLISHED = (
  'https://github.com/google-research/distilling-step-by-step/raw/'
  'ef944263c9ddfd40a9888557f3e7d17513fd1a7e/datasets.zip'
)
# URL -> 'sha256:<hex>', or 'git:<hex>', the id that git gives the contents.
CHECKSUMS = {PUBLISHED: 'git:fb9d88a0b44c2daac1ec1639f0bdae993e7e5bcd'}

MAX_BYTES = 16 << 30
TIMEOUT_SECONDS = 60
NUM_TRIES = 6
_CHUNK_BYTES = 1 << 18
_CHECKSUM = re.compile('sha256:[0-9a-f]{64}|git:[0-9a-f]{40}')
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


def local(
  source: str | pathlib.Path,
  folder: str | pathlib.Path,
  *,
  progress: Progress | None = None,
) -> pathlib.Path:
  """A source's path on this machine; a URL is downloaded first.

  Args:
    source: a path or an http(s) URL.
    folder: where downloads are kept.
    progress: see `fetch`.

  Returns:
    The path.
  """
  if re.match('https?://', str(source)):
    return fetch(str(source), folder, progress=progress)
  return pathlib.Path(source).expanduser()


def fetch(
  url: str,
  folder: str | pathlib.Path,
  *,
  checksum: str | None = None,
  progress: Progress | None = None,
  wait: Callable[[float], None] = time.sleep,
) -> pathlib.Path:
  """Downloads a file, or goes on where an earlier attempt broke off.

  Args:
    url: http or https.
    folder: where the file comes to lie, under the URL's last name. Until it is
      whole and checked, it is `<name>.part`.
    checksum: 'sha256:<hex>' or 'git:<hex>'; None takes the known one of the
      URL, if any.
    progress: called with the bytes on disk and the expected total (or None).
    wait: called with the seconds to wait before another try.

  Returns:
    Path of the file.

  Raises:
    UserError: a bad URL or checksum, an answer that says no, a file over
      `MAX_BYTES`, contents that differ from the checksum, or `NUM_TRIES`
      broken connections in a row.
  """
  checksum = checksum or CHECKSUMS.get(url)
  if checksum is not None and not _CHECKSUM.fullmatch(checksum):
    raise contract.UserError(
      f'The checksum is {checksum!r}, expected sha256: and 64 hexadecimal'
      ' digits, or git: and 40.'
    )
  path = pathlib.Path(folder).expanduser() / _file_name(url)
  if not path.is_file():
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + '.part')
    _complete(url, part, checked=checksum is not None, tell=progress, wait=wait)
    _verify(part, checksum, url)
    part.rename(path)
    _validator_file(part).unlink(missing_ok=True)
  else:
    _verify(path, checksum, url)
  return path


def _file_name(url: str) -> str:
  parts = urllib.parse.urlsplit(url)
  name = pathlib.PurePosixPath(urllib.parse.unquote(parts.path)).name
  if parts.scheme not in ('http', 'https') or not parts.netloc or not name:
    raise contract.UserError(
      f'The URL is {url!r}, expected http(s)://host/.../file. Check it.'
    )
  return name


def _complete(
  url: str,
  part: pathlib.Path,
  *,
  checked: bool,
  tell: Progress | None,
  wait: Callable[[float], None],
) -> None:
  """Tries until the part is whole; a try that adds bytes resets the count."""
  failures = 0
  while True:
    before = _size(part)
    try:
      if _advance(url, part, checked=checked, tell=tell):
        return
      error = 'the connection ended early'
    except urllib.error.HTTPError as refusal:
      if refusal.code not in _BUSY:
        raise contract.UserError(
          f'{url} answers {refusal.code} {refusal.reason}, expected the file.'
          ' Check the URL.'
        ) from refusal
      error = refusal
    except _BROKEN as broken:
      error = broken
    failures = 1 if _size(part) > before else failures + 1
    if failures >= NUM_TRIES:
      raise contract.UserError(
        f'{url} could not be read after {failures} tries ({error}). The'
        f' {_size(part):,} bytes that came are kept in {part}: run it again to'
        ' go on.'
      )
    wait(min(30.0, 0.5 * 2**failures))


def _advance(
  url: str, part: pathlib.Path, *, checked: bool, tell: Progress | None
) -> bool:
  """One request for what is missing; whether the part is whole now."""
  request = urllib.request.Request(url, headers={'Accept-Encoding': 'identity'})
  have = _size(part)
  validator = _validator(part)
  # Without either, bytes of two versions could be glued together.
  if have and (validator or checked):
    request.add_header('Range', f'bytes={have}-')
    if validator:
      request.add_header('If-Range', validator)
  try:
    response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
  except urllib.error.HTTPError as refusal:
    if refusal.code != 416:
      raise
    # Nothing is missing, or the file is another one now.
    whole = refusal.headers.get('Content-Range') == f'bytes */{have}'
    if not whole:
      part.unlink()
    return whole
  with response:
    resumed = response.status == 206
    if resumed and not _starts_at(response, have):
      raise http.client.HTTPException('the server sent another range')
    have = have if resumed else 0
    length = response.headers.get('Content-Length')
    total = have + int(length) if length and length.isdigit() else None
    if total is not None:
      _check_size(total, url)
    _remember(part, response)
    with open(part, 'ab' if resumed else 'wb') as file:
      while chunk := response.read(_CHUNK_BYTES):
        file.write(chunk)
        have += len(chunk)
        _check_size(have, url)
        if tell is not None:
          tell(have, total)
  return total is None or have == total


def _starts_at(response: http.client.HTTPResponse, offset: int) -> bool:
  found = response.headers.get('Content-Range', '')
  return found.startswith(f'bytes {offset}-')


def _check_size(size: int, url: str) -> None:
  if size > MAX_BYTES:
    raise contract.UserError(
      f'{url} has {size:,} bytes or more, expected at most {MAX_BYTES:,}.'
      ' Download it by hand if it is right.'
    )


def _size(path: pathlib.Path) -> int:
  return path.stat().st_size if path.is_file() else 0


def _validator_file(part: pathlib.Path) -> pathlib.Path:
  return part.with_name(part.name + '.json')


def _validator(part: pathlib.Path) -> str | None:
  """What the server called the version that the part belongs to."""
  file = _validator_file(part)
  return json.loads(file.read_text()) if file.is_file() else None


def _remember(part: pathlib.Path, response: http.client.HTTPResponse) -> None:
  etag = response.headers.get('ETag', '')
  strong = etag if etag and not etag.startswith('W/') else None
  _validator_file(part).write_text(json.dumps(strong))


def _verify(path: pathlib.Path, checksum: str | None, url: str) -> None:
  """Compares a file with its checksum, and removes it where they differ."""
  if checksum is None:
    return
  kind, expected = checksum.split(':')
  digest = hashlib.sha256() if kind == 'sha256' else hashlib.sha1()
  if kind == 'git':
    digest.update(b'blob %d\0' % _size(path))
  with open(path, 'rb') as file:
    while chunk := file.read(_CHUNK_BYTES):
      digest.update(chunk)
  if digest.hexdigest() != expected:
    path.unlink()
    _validator_file(path).unlink(missing_ok=True)
    raise contract.UserError(
      f'{url} came with the {kind} checksum {digest.hexdigest()}, expected'
      f' {expected}. The download was removed: get it again.'
    )
