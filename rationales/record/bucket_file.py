# SPDX-License-Identifier: Apache-2.0
"""The completions file of an --out in a bucket: kept here, uploaded often.

A bucket has no append, and answers are paid for. So the file that is appended
to lies in the cache of this machine, in a folder of its URL, and stays there:
what a kill kept from being uploaded is there for the next run, which uploads
it. On another machine at most the answers of a minute are missing.
"""

import contextlib
import hashlib
import pathlib
import threading
from collections.abc import Iterator

from dsbs_jax import contract
from dsbs_jax.data.remote import object_cache, object_store
from dsbs_jax.runtime import files, folder_lock, progress

UPLOAD_SECONDS = 60.0


@contextlib.contextmanager
def local(out: str) -> Iterator[pathlib.Path]:
  """The file to append to: a local one, or one whose bucket has it at the end.

  Raises:
    UserError: another process writes it, the bucket refuses, or it holds
      other answers than this machine.
  """
  if not object_store.is_bucket(out):
    yield pathlib.Path(out)
    return
  lock = folder_lock.FolderLock(
    f'{out}.lock', doing='extended', remedy='give another --out'
  )
  with folder_lock.hold(lock):
    upload = Upload(out, lock)
    upload.start()
    try:
      yield upload.path
    finally:
      upload.stop()
    progress.say(f'uploaded: {out}')


class Upload:
  """Keeps an object as its file `path` on this machine, by a lock it holds."""

  def __init__(self, url: str, lock: folder_lock.FolderLock):
    self._url, self._lock = url, lock
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    folder = object_cache.folder() / 'answers' / name
    self.path = folder / url.rpartition('/')[2]
    self._sent = folder / 'sent'  # how many bytes the bucket had
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._repeat, daemon=True)

  def start(self) -> None:
    """Brings the file and the object together, then uploads now and then."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    mine = self.path.read_bytes() if self.path.exists() else b''
    try:
      theirs = object_store.read(self._url)
    except FileNotFoundError:
      theirs = b''
      if mine and self._sent_bytes() == len(mine):
        self.path.replace(f'{self.path}.removed')  # the user has begun anew
        self._sent.unlink()
        mine = b''
    if theirs.startswith(mine):
      if theirs:
        files.replace_bytes(self.path, theirs)
    elif mine.startswith(theirs):
      more = len(mine) - len(theirs)
      progress.say(f'{self.path}: {more:,} bytes of it were not uploaded yet')
    else:
      raise contract.UserError(
        f'{self._url} and {self.path}, what this machine has of it, hold'
        ' different answers, expected one to go on from the other. Upload that'
        ' file under another name, then remove it.'
      )
    self._fetch_beside()
    self.upload()
    self._thread.start()

  def stop(self) -> None:
    """Uploads the rest."""
    self._stopped.set()
    self._thread.join()
    try:
      self.upload()
    except object_store.StoreError as error:
      raise contract.UserError(
        f'{error} All answers are in {self.path}, from which the same command'
        ' goes on here.'
      ) from error

  def upload(self) -> None:
    """Uploads the file, and those of batches, if they have grown."""
    size = self.path.stat().st_size if self.path.exists() else 0
    if size in (0, self._sent_bytes()):
      return
    self._lock.check()
    there = sorted(self.path.parent.glob(f'{self.path.name}*'))
    paths = [path for path in there if path.suffix not in ('.removed', '.tmp')]
    urls = [self._url + p.name.removeprefix(self.path.name) for p in paths]
    object_store.put(list(map(str, paths)), urls)
    files.replace_text(self._sent, str(size))

  def _sent_bytes(self) -> int:
    return int(self._sent.read_text()) if self._sent.exists() else 0

  def _fetch_beside(self) -> None:
    """The files of batches that another machine has begun."""
    folder, _, name = self._url.rpartition('/')
    for other in object_store.names(folder):
      place = self.path.with_name(other)
      if other.startswith(f'{name}.batch-') and not place.exists():
        files.replace_bytes(place, object_store.read(f'{folder}/{other}'))

  def _repeat(self) -> None:
    while not self._stopped.wait(UPLOAD_SECONDS):
      try:
        self.upload()
      except contract.UserError as error:  # the next time, or at the end
        progress.say(f'not uploaded yet: {error}')
