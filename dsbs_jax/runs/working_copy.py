# SPDX-License-Identifier: Apache-2.0
"""The folder that a run writes to: its MODEL_DIR, or a copy of one in a bucket.

A run in a bucket starts from what the bucket holds, and from nothing that an
earlier process left on this machine. It writes into a local copy. `push`
uploads logs at once, then checkpoints in the background, marked as incomplete
until they are whole; so wherever a kill falls, the bucket has a checkpoint and
all lines of the log up to its step.
"""

import concurrent.futures
import contextlib
import pathlib
from collections.abc import Iterator

import jax

from dsbs_jax.data.remote import buckets, object_store
from dsbs_jax.interop import checksums
from dsbs_jax.runs import checkpoint_parts
from dsbs_jax.runtime import progress


class WorkingCopy:
  """A run's folder on this machine.

  Attributes:
    folder: where the run reads and writes.
    is_remote: whether that is a copy.
  """

  def __init__(self, model_dir: str):
    self.folder = model_dir
    self.is_remote = object_store.is_bucket(model_dir)
    if self.is_remote:
      if jax.process_index() == 0:
        for folder in buckets.remove_incomplete(model_dir):
          progress.say(f'{folder} was not uploaded to its end: removed')
        checkpoint_parts.remove(model_dir)
      checksums.meet('working_copy')
      self.folder = str(buckets.fetch(model_dir, cached=False))
      pathlib.Path(self.folder).mkdir(parents=True, exist_ok=True)
      self._thread = concurrent.futures.ThreadPoolExecutor(1)
      self._upload = None

  def push(self) -> None:
    """Uploads what has changed; returns once the logs are in the bucket.

    The caller writes to no checkpoint until `wait` has returned.

    Raises:
      StoreError: this or the previous upload failed.
    """
    if not self.is_remote or jax.process_index():
      return  # process 0 has all that is written
    self.wait()
    folder = pathlib.Path(self.folder)
    changed, gone = buckets.changes(folder)
    later = [p for p in changed if buckets.is_in_whole_folder(p)]
    buckets.push(folder, [p for p in changed if p not in later])
    self._upload = self._thread.submit(buckets.push, folder, later, gone)

  def wait(self) -> None:
    """Returns when all that was pushed is in the bucket."""
    if self.is_remote and self._upload is not None:
      upload, self._upload = self._upload, None
      upload.result()

  def close(self) -> None:
    """Lets an upload that is under way end."""
    if self.is_remote:
      self._thread.shutdown()


@contextlib.contextmanager
def open(model_dir: str) -> Iterator[WorkingCopy]:
  """A run's folder, in the bucket at the end unless an exception ends it.

  What an exception leaves is not uploaded: the folder may be another
  process's by then.
  """
  with contextlib.closing(WorkingCopy(model_dir)) as copy:
    yield copy
    copy.push()
    copy.wait()
