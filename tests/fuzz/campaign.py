# SPDX-License-Identifier: Apache-2.0
"""python -m tests.fuzz.campaign TARGET SECONDS FOLDER: atheris on one target.

Coverage of the project's and gin's Python guides the inputs. Failures are
noted once per kind and place and the search goes on; FOLDER/TARGET.json holds
the figures, FOLDER/TARGET-N.input what failed.
"""

import gc
import json
import pathlib
import sys
import time
import traceback

import atheris

with atheris.instrument_imports(
  include=['dsbs_jax', 'rationales', 'tasks', 'gin']
):
  from tests.fuzz import targets

_WRITE_EVERY_SECONDS = 2.0
_MAX_BYTES = 8192


class Campaign:
  """Counts what is tried and keeps what failed."""

  def __init__(self, name: str, folder: pathlib.Path):
    self._run, self._name = targets.TARGETS[name].run, name
    self._folder = folder
    self._begin = self._written = time.monotonic()
    self._failures = {}
    self.inputs, self.worst, self.worst_input = 0, 0.0, b''

  def __call__(self, data: bytes) -> None:
    """Tries one input."""
    begin = time.thread_time()
    try:
      self._run(data)
    except Exception as error:  # the point of it: whatever comes is a finding
      self._keep(error, data)
    seconds = time.thread_time() - begin
    self.inputs += 1
    if seconds > self.worst:
      self.worst, self.worst_input = seconds, data
    if time.monotonic() - self._written > _WRITE_EVERY_SECONDS:
      self.write()

  def _keep(self, error: Exception, data: bytes) -> None:
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f'{type(error).__name__} in {last.filename}:{last.lineno}'
    if place in self._failures:
      self._failures[place]['times'] += 1
      return
    number = len(self._failures)
    self._failures[place] = {'times': 1, 'message': ascii(error)[:300]}
    (self._folder / f'{self._name}-{number}.input').write_bytes(data)
    self.write()

  def write(self) -> None:
    """Writes the figures so far."""
    self._written = time.monotonic()
    figures = {
      'target': self._name,
      'inputs': self.inputs,
      'wall_seconds': round(self._written - self._begin, 1),
      'cpu_seconds': round(time.process_time(), 1),
      'worst_cpu_milliseconds': round(1000 * self.worst, 2),
      'worst_input': ascii(self.worst_input[:200]),
      'failures': self._failures,
    }
    file = self._folder / f'{self._name}.json'
    file.write_text(json.dumps(figures, indent=2))


def main(name: str, seconds: str, folder: str) -> None:
  """Runs until the time is over; libFuzzer then ends the process."""
  place = pathlib.Path(folder)
  corpus = place / f'{name}.corpus'
  corpus.mkdir(parents=True, exist_ok=True)
  pieces = targets.TARGETS[name].pieces
  dictionary = place / f'{name}.dict'
  encoded = [piece.encode('utf-8', 'surrogatepass') for piece in pieces]
  dictionary.write_text(
    ''.join(
      '"' + ''.join(f'\\x{byte:02x}' for byte in piece) + '"\n'
      for piece in encoded
      if len(piece) <= 64
    )
  )
  for number, piece in enumerate(encoded):
    (corpus / f'seed-{number}').write_bytes(piece)
  options = [
    f'-max_total_time={seconds}',
    f'-max_len={_MAX_BYTES}',
    f'-dict={dictionary}',
    '-rss_limit_mb=4096',
    '-print_final_stats=1',
    str(corpus),
  ]
  gc.freeze()  # else a collection of all libraries counts for some input
  campaign = Campaign(name, place)
  atheris.Setup([sys.argv[0], *options], campaign)
  atheris.Fuzz()


if __name__ == '__main__':
  main(*sys.argv[1:])
