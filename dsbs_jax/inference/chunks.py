# SPDX-License-Identifier: Apache-2.0
"""Predicts for lines in chunks: in order, in bounded memory.

A chunk of lines is read, sorted by length for even batches, predicted, and
written back in order; then the next one. Chunks start at multiples of their
size, also after a kill, so that a resumed file is byte for byte the one of an
unbroken run.
"""

import itertools
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

from dsbs_jax.inference import answer_file, input_lines, predictor
from dsbs_jax.runtime import progress, signals


def predict_lines(
  lines: Iterable[input_lines.Line],
  student: predictor.Predictor,
  answers: answer_file.AnswerFile | answer_file.AnswerStream,
  *,
  input_name: str,
  chunk_size: int,
  max_input_len: int,
  stop: signals.StopRequest,
) -> int:
  """Predicts for lines by chunks; gives the number that the output holds.

  Args:
    lines: all lines of the input, from its start.
    answers: where predictions go; lines that it holds are skipped.
    input_name: path of the input, for errors and for its size.
    stop: asked after every batch; the unfinished chunk is dropped.
  """
  lines = iter(lines)
  written = answers.num_lines
  # A chunk that is partly written is predicted again as a whole.
  meter = _Progress(input_name, num_before=written - written % chunk_size)
  while chunk := list(itertools.islice(lines, chunk_size)):
    for line in chunk:
      answers.note_input(line.content)
    meter.note_read(chunk)
    if chunk[-1].number <= written:
      continue
    answers.check_in_place()
    entries = _answer_chunk(
      chunk, student, meter, max_input_len=max_input_len, stop=stop
    )
    if entries is None:
      return written
    num_written = max(0, written - chunk[0].number + 1)
    answers.append(entries[num_written:])
    written = chunk[-1].number
  answers.check_end()
  return written


def _answer_chunk(
  chunk: Sequence[input_lines.Line],
  student: predictor.Predictor,
  meter: '_Progress',
  *,
  max_input_len: int,
  stop: signals.StopRequest,
) -> list[dict[str, Any]] | None:
  """An entry of the output per line; None where it was stopped."""
  entries = [{'line': line.number, **line.input.ids} for line in chunk]
  readable, valid = [], []
  for i, line in enumerate(chunk):
    if isinstance(line.input, input_lines.ModelInput):
      readable.append(i)
    else:
      entries[i]['error'] = line.input.reason
  lengths = student.num_tokens([chunk[i].input for i in readable])
  for i, length in zip(readable, lengths, strict=True):
    if length <= max_input_len:
      valid.append(i)
    else:
      entries[i]['error'] = (
        f'{chunk[i].place} has {length:,} tokens, expected at most'
        f' {max_input_len:,}. Shorten it, or raise MAX_INPUT_LEN.'
      )
  inputs = [chunk[i].input for i in valid]
  for positions, predictions in student.predict_batches(inputs):
    for position, prediction in zip(positions, predictions, strict=True):
      entry = entries[valid[position]]
      entry['label'] = prediction.label
      entry['probability'] = prediction.probability
      if prediction.rationale is not None:
        entry['rationale'] = prediction.rationale
      if prediction.cut:
        entry['cut'] = True
    meter.note_answered(len(positions))
    if stop.requested():
      return None
  return entries


class _Progress:
  """Shows lines, rate and, if the input is a file, the time that is left."""

  def __init__(self, name: str, *, num_before: int):
    self._left = os.path.getsize(name) if os.path.isfile(name) else None
    self._line = progress.ProgressLine()
    self._num_before = num_before
    self._lines = self._bytes = self._done = 0
    self._first = None  # time and lines of the first answers

  def note_read(self, chunk: list[input_lines.Line]) -> None:
    size = sum(len(line.content) for line in chunk)
    if chunk[-1].number <= self._num_before:
      if self._left is not None:
        self._left -= size
      return
    self._lines += len(chunk)
    self._bytes += size

  def note_answered(self, num: int) -> None:
    self._done += num
    now = time.monotonic()
    text = f'{self._num_before + self._done:,} lines answered'
    if self._first is None:  # after compiling, which says nothing of the rest
      self._first = now, self._done
    elif now > self._first[0]:
      rate = (self._done - self._first[1]) / (now - self._first[0])
      text += f'  {rate:,.1f} lines/s'
      if self._left is not None:
        lines_left = self._left * self._lines / self._bytes - self._done
        text += f'  ETA {progress.duration(max(0.0, lines_left) / rate)}'
    self._line.update(text)
