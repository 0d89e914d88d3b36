# SPDX-License-Identifier: Apache-2.0
"""Predicts for every line of a file, in order, in bounded memory.

Settings and checkpoint are here; `chunks` goes through the lines.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import jax

from dsbs_jax import contract
from dsbs_jax.data import declared
from dsbs_jax.data.remote import buckets, object_store
from dsbs_jax.inference import (
  answer_file,
  chunks,
  input_lines,
  length_buckets,
  student,
  student_config,
)
from dsbs_jax.runtime import field_checks, folder_lock, progress, signals

STREAM = '-'
ERRORS_STATUS = 1

# Fields of an output line that an id may not overwrite.
_OWN_FIELDS = ('line', 'label', 'probability', 'rationale', 'cut', 'error')


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferConfig(student_config.StudentConfig):
  """Settings of inference; gin/infer.gin binds every field.

  Attributes:
    input: file of lines, '-' for stdin.
    output: file of JSON lines, '-' for stdout.
    id_fields: fields of an object that its output line repeats.
    eval_batch_size: rows per batch.
    chunk_size: lines that are in memory at once.
    max_input_len: tokens of an input at most; a longer one is an error line.
  """

  input: str
  output: str
  id_fields: tuple[str, ...]
  eval_batch_size: int
  chunk_size: int
  max_input_len: int

  def __post_init__(self):
    super().__post_init__()
    field_checks.texts(self, 'input', 'output')
    field_checks.counts(self, 'eval_batch_size', 'chunk_size', 'max_input_len')
    if not isinstance(self.id_fields, tuple | list):
      raise contract.UserError(
        f"id_fields is {self.id_fields!r}, expected a tuple such as ('id',)."
      )
    object.__setattr__(self, 'id_fields', tuple(self.id_fields))
    taken = sorted(set(self.id_fields) & set(_OWN_FIELDS))
    if taken:
      raise contract.UserError(
        f'ID_FIELDS names {taken}, which output lines have of their own.'
        ' Leave them out.'
      )
    if self.output != STREAM and self.output == self.input:
      raise contract.UserError(f'INPUT and OUTPUT are both {self.input!r}.')


def infer(config: InferConfig) -> int:
  """Predicts for every line of the input.

  Returns:
    The exit status: 0, 1 where a line got an error instead, 75 where a signal
    stopped the work; the same command goes on.

  Raises:
    UserError: there is no such checkpoint, it does not fit, or the output
      was begun with other settings or another input.
  """
  if jax.process_count() > 1:
    raise contract.UserError(
      f'there are {jax.process_count()} processes, expected one. Split the'
      ' input, one file per process.'
    )
  _check_columns(config)
  id_fields = _id_fields(config)
  stop = signals.StopRequest()
  with _input(config.input) as file:
    shapes = length_buckets.LengthBuckets(config.eval_batch_size)
    loaded = student.load_student(config, shapes=shapes)
    if config.score_labels:
      progress.say('choosing the likeliest of the closed set, not generating')
    settings = loaded.fingerprint | {
      'id_fields': id_fields,
      'max_input_len': config.max_input_len,
    }
    lines = input_lines.read_lines(
      file, config.input, benchmark=config.row_benchmark, id_fields=id_fields
    )
    with _answers(config.output, settings) as answers:
      before, started = answers.num_lines, time.monotonic()
      if before:
        progress.say(f'going on after line {before:,} of {config.output}')
      total = chunks.predict_lines(
        lines,
        loaded.predictor,
        answers,
        input_name=config.input,
        chunk_size=config.chunk_size,
        max_input_len=config.max_input_len,
        stop=stop,
      )
      if not stop.name:
        _check_input(config, answers)
      rate = (total - before) / max(time.monotonic() - started, 1e-9)
      progress.say(
        f'{total:,} lines ({answers.num_errors:,} errors),'
        f' {total - before:,} now at {rate:,.1f} lines/s  -> {config.output}'
      )
      if stop.name:
        progress.say(f'stopped by {stop.name}; the same command goes on')
        return signals.INTERRUPTED_STATUS
      return ERRORS_STATUS if answers.num_errors else 0


def _input(path: str) -> contextlib.AbstractContextManager[BinaryIO]:
  if path == STREAM:
    return contextlib.nullcontext(sys.stdin.buffer)
  return open(buckets.file(path), 'rb')


@contextlib.contextmanager
def _answers(
  path: str, settings: Mapping[str, Any]
) -> Iterator[answer_file.AnswerFile | answer_file.AnswerStream]:
  if path == STREAM:
    yield answer_file.AnswerStream(sys.stdout.buffer)
    return
  with (
    _output(path) as output,
    contextlib.closing(answer_file.AnswerFile(output, settings)) as answers,
  ):
    yield answers


def _check_columns(config: InferConfig) -> None:
  """Raises where every row of a table would get the same error."""
  path = None if config.input == STREAM else buckets.file(config.input)
  if config.benchmark or path is None or not os.path.isfile(path):
    return  # a pipe gives its lines once
  with open(path, 'rb') as file:
    input_lines.check_columns(file, config.input)


def _id_fields(config: InferConfig) -> tuple[str, ...]:
  """The fields to repeat: those asked for, and the rows' own --id."""
  rows = config.row_benchmark
  said = declared.description(rows) if rows else None
  own = said.id if said else None
  if own is None or own in (*config.id_fields, *_OWN_FIELDS):
    return config.id_fields
  return (*config.id_fields, own)


@contextlib.contextmanager
def _output(path: str) -> Iterator[pathlib.Path]:
  """The file to write; of one in a bucket a copy, uploaded at the end."""
  if not object_store.is_bucket(path):
    yield pathlib.Path(path)
    return
  lock = folder_lock.FolderLock(
    f'{path}.lock', doing='written', remedy='choose another OUTPUT'
  )
  state = f'{path}{answer_file.STATE_SUFFIX}'
  with folder_lock.hold(lock), buckets.output(state):
    buckets.fetch(state)
    with buckets.output(path):
      yield buckets.fetch(path)
      lock.check()


def _check_input(
  config: InferConfig,
  answers: answer_file.AnswerFile | answer_file.AnswerStream,
) -> None:
  """Raises UserError if the lines that were answered stand there no more."""
  # A pipe gives its lines once, and one that is gone cannot be compared.
  if config.input == STREAM:
    return
  path = buckets.fetch(config.input)
  if os.path.isfile(path):
    with open(path, 'rb') as file:
      lines = input_lines.read_lines(file, config.input)
      answers.check_input(line.content for line in lines)
