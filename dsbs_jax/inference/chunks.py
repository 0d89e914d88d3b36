# SPDX-License-Identifier: Apache-2.0
"""Lines in, answers out, in order and in bounded memory.

A chunk of lines is read, sorted by length for even batches, answered, and
written back in order; then the next one. Chunks start at multiples of their
size, also after a kill, so a resumed file is byte for byte an unbroken one.
"""

import dataclasses
import itertools
import os
import time
from collections.abc import Iterable
from typing import Any

from dsbs_jax.inference import answer_file, input_lines, predictor
from dsbs_jax.runtime import progress, signals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """How the input is read.

  Attributes:
    name: its path, for errors and for its size.
    chunk_size: lines that are in memory at once.
    max_input_len: tokens of an input at most; a longer one is an error line.
  """

  name: str
  chunk_size: int
  max_input_len: int


def predict_lines(
  lines: Iterable[input_lines.Line],
  answerer: predictor.Predictor,
  answers: answer_file.AnswerFile | answer_file.AnswerStream,
  *,
  reading: Reading,
  stop: signals.StopRequest,
) -> int:
  """Answers lines, a chunk at a time.

  Args:
    lines: all lines of the input, from its start.
    answerer: what answers.
    answers: where answers go; lines that it holds are not answered again.
    reading: how the lines are read.
    stop: asked after every batch; the chunk under way is dropped.

  Returns:
    Lines that the output holds.
  """
  lines = iter(lines)
  written = answers.num_lines
  # A chunk that is partly written is answered again as a whole.
  meter = _Progress(reading.name, first=written - written % reading.chunk_size)
  while chunk := list(itertools.islice(lines, reading.chunk_size)):
    for line in chunk:
      answers.read(line.content)
    meter.read(chunk)
    if chunk[-1].number <= written:
      continue
    entries = [{'line': line.number, **line.question.ids} for line in chunk]
    asked = _note_problems(chunk, entries, answerer, reading)
    for positions, given in answerer.answer([chunk[i].question for i in asked]):
      for position, answer in zip(positions, given, strict=True):
        entries[asked[position]] |= _fields(answer)
      meter.answered(len(positions))
      if stop.requested(written):
        return written
    skipped = max(0, written - chunk[0].number + 1)
    answers.append(entries[skipped:])
    written = chunk[-1].number
  answers.check_end()
  return written


def _note_problems(
  chunk: list[input_lines.Line],
  entries: list[dict[str, Any]],
  answerer: predictor.Predictor,
  reading: Reading,
) -> list[int]:
  """Writes errors into entries; returns the places of the others."""
  readable = []
  for i, line in enumerate(chunk):
    if isinstance(line.question, input_lines.InvalidInput):
      entries[i]['error'] = line.question.reason
    else:
      readable.append(i)
  asked = []
  lengths = answerer.lengths([chunk[i].question for i in readable])
  for i, length in zip(readable, lengths, strict=True):
    if length > reading.max_input_len:
      entries[i]['error'] = (
        f'{reading.name}:{chunk[i].number} has {length:,} tokens, expected'
        f' at most {reading.max_input_len:,}. Shorten it, or raise'
        ' MAX_INPUT_LEN.'
      )
    else:
      asked.append(i)
  return asked


def _fields(answer: predictor.Prediction) -> dict[str, Any]:
  fields = {'label': answer.label, 'probability': answer.probability}
  if answer.rationale is not None:
    fields['rationale'] = answer.rationale
  return fields


class _Progress:
  """Shows lines, rate and, where the size is known, the time that is left."""

  def __init__(self, name: str, *, first: int):
    self._left = os.path.getsize(name) if os.path.isfile(name) else None
    self._line = progress.ProgressLine()
    self._first = first
    self._lines = self._bytes = self._done = 0
    self._start = time.monotonic()

  def read(self, chunk: list[input_lines.Line]) -> None:
    """Takes note of a chunk that was read."""
    size = sum(len(line.content) for line in chunk)
    if chunk[-1].number <= self._first:
      self._start = time.monotonic()
      if self._left is not None:
        self._left -= size
      return
    self._lines += len(chunk)
    self._bytes += size

  def answered(self, num: int) -> None:
    """Takes note of answered lines, and shows where we are."""
    self._done += num
    seconds = max(time.monotonic() - self._start, 1e-9)
    text = f'{self._first + self._done:,} lines answered'
    text += f'  {self._done / seconds:,.1f} lines/s'
    if self._left is not None:
      done = self._bytes * self._done / self._lines
      seconds *= max(0.0, self._left / max(done, 1.0) - 1)
      text += f'  ETA {progress.duration(seconds)}'
    self._line.update(text)
