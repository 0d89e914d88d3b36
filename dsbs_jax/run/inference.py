# SPDX-License-Identifier: Apache-2.0
"""Asks a student about every line of a file, in order, in bounded memory.

Settings and checkpoint are here; `windows` walks through the lines.
"""

import contextlib
import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import jax
import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import network, partitioning
from dsbs_jax.data import forms, register, vocabularies
from dsbs_jax.interop import checkpoints as foreign
from dsbs_jax.run import (
  answer_file,
  answering,
  checkpoints,
  compilation,
  evaluation,
  journal,
  questions,
  scoring,
  signals,
  windows,
)

STREAM = '-'
ERRORS_STATUS = 1

# Fields of an answer that an id may not overwrite.
_OWN_FIELDS = ('line', 'label', 'probability', 'rationale', 'error')
# Parameters up to this size stand for a checkpoint's identity.
_SMALL = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inference:
  """Settings of inference; gin/infer.gin binds every field.

  Attributes:
    checkpoint_path: as in evaluation.
    mixture_or_task_name: what the student was trained on; its label form is
      what it is asked.
    step: as in evaluation.
    input: file of lines, '-' for stdin.
    output: file of JSON lines, '-' for stdout.
    benchmark: name of the benchmark whose raw rows the lines are; None where
      they are text, or objects with `input`.
    id_fields: fields of an object that its answer repeats.
    rationales: whether to write the student's rationales too.
    score_labels: whether to choose the likeliest label of the closed set
      rather than generating one.
    vocabulary: as in training.
    prefixes: as in training.
    model: the network.
    eval_batch_size: rows per batch.
    window: lines that are in memory at once.
    max_input_len: tokens of an input at most; a longer one is an error line.
    max_decode_len: tokens of a label at most.
    max_rationale_len: tokens of a rationale at most.
    num_beams: 1 for greedy decoding.
    mesh: as in training.
    sharding_rules: as in training.
  """

  checkpoint_path: str
  mixture_or_task_name: str
  step: str | int
  input: str
  output: str
  benchmark: str | None
  id_fields: tuple[str, ...]
  rationales: bool
  score_labels: bool
  vocabulary: str | None
  prefixes: str | None
  model: network.T5Config
  eval_batch_size: int
  window: int
  max_input_len: int
  max_decode_len: int
  max_rationale_len: int
  num_beams: int
  mesh: str | None
  sharding_rules: Callable[[], partitioning.Rules]

  def __post_init__(self):
    object.__setattr__(self, 'id_fields', tuple(self.id_fields))
    for name in ('eval_batch_size', 'window', 'max_input_len', 'num_beams'):
      if getattr(self, name) < 1:
        raise ValueError(
          f'{name.upper()} is {getattr(self, name)}, expected 1 or more.'
        )
    taken = sorted(set(self.id_fields) & set(_OWN_FIELDS))
    if taken:
      raise ValueError(
        f'ID_FIELDS names {taken}, which answers hold themselves. Leave them'
        ' out.'
      )
    if self.output != STREAM and self.output == self.input:
      raise ValueError(f'INPUT and OUTPUT are both {self.input!r}.')
    self._check_task()

  def _check_task(self) -> None:
    form = contract.parse_task_name(self.mixture_or_task_name).form
    if form == 'rationale':
      raise ValueError(
        f'{self.mixture_or_task_name} has no label to predict, expected a task'
        ' or mixture with labels, such as cqa_gt_dsbs. Set'
        ' MIXTURE_OR_TASK_NAME.'
      )
    if self.rationales and form == 'finetune':
      raise ValueError(
        f'RATIONALES is True, but {self.mixture_or_task_name} teaches none.'
        ' Leave it out, or take a student of _dsbs or _single.'
      )


def infer(run: Inference) -> int:
  """Answers every line of the input.

  Args:
    run: all settings.

  Returns:
    The exit status: 0, 1 where a line was answered by an error, 75 where a
    signal stopped the work; the same command goes on.

  Raises:
    ValueError: there is no such checkpoint, it does not fit, or the output
      was begun with other settings or another input.
  """
  if jax.process_count() > 1:
    raise ValueError(
      f'there are {jax.process_count()} processes, expected one. Split the'
      ' input, one file per process.'
    )
  stop = signals.StopRequest()
  with _open_input(run.input) as file:
    answerer, facts = open_answerer(run)
    if run.score_labels:
      journal.say('choosing the likeliest of the closed set, not generating')
    if run.output == STREAM:
      answers = answer_file.AnswerStream(sys.stdout.buffer)
    else:
      answers = answer_file.AnswerFile(run.output, facts)
    reading = windows.Reading(
      name=run.input, window=run.window, max_input_len=run.max_input_len
    )
    with contextlib.closing(answers):
      before, started = answers.num_lines, time.monotonic()
      if before:
        journal.say(f'going on after line {before:,} of {run.output}')
      total = windows.answer_lines(
        _lines(run, file), answerer, answers, reading=reading, stop=stop
      )
      rate = (total - before) / max(time.monotonic() - started, 1e-9)
      journal.say(
        f'{total:,} lines ({answers.num_errors:,} errors),'
        f' {total - before:,} now at {rate:,.1f} lines/s  -> {run.output}'
      )
      if stop.requested(total):
        journal.say(f'stopped by {stop.name}; the same command goes on')
        return signals.INTERRUPTED_STATUS
      return ERRORS_STATUS if answers.num_errors else 0


def open_answerer(
  run: Inference,
) -> tuple[answering.Answerer, dict[str, Any]]:
  """Reads the checkpoint.

  Returns:
    What answers, and JSON facts on which every answer depends.
  """
  compilation.use_cache()
  mesh = partitioning.make_mesh(run.mesh)
  source = register.source(vocabulary=run.vocabulary, prefixes=run.prefixes)
  vocabulary = vocabularies.load(source.vocabulary)
  settings = _answering(run, forms.prefixes(source.prefixes))
  shapes = network.param_shapes(run.model)
  shardings = partitioning.shardings(shapes, mesh, run.sharding_rules())
  path, step = scoring.find_checkpoint(run.checkpoint_path, run.step)
  journal.say(f'reading {path}')
  params = foreign.load_initial(
    path,
    run.model,
    like=checkpoints.shapes_with_shardings(shapes, shardings),
    vocabulary_fingerprint=vocabulary.fingerprint,
  )
  facts = dataclasses.asdict(settings) | {
    'step': step,
    'parameters': _digest(params),
    'vocabulary': vocabulary.fingerprint,
    'benchmark': run.benchmark,
    'id_fields': run.id_fields,
    'max_input_len': run.max_input_len,
  }
  # How the work is cut up decides no answer.
  facts.pop('batch_size')
  answerer = answering.Answerer(
    settings,
    params,
    vocabulary=vocabulary,
    mesh=mesh,
    param_shardings=shardings,
  )
  return answerer, facts


def _lines(run: Inference, file: BinaryIO) -> Iterator[questions.Line]:
  return questions.read(
    file,
    run.input,
    benchmark=register.benchmark(run.benchmark) if run.benchmark else None,
    id_fields=run.id_fields,
  )


def _answering(run: Inference, prefixes: forms.Prefixes) -> answering.Answering:
  task = evaluation.evaluated_task(run.mixture_or_task_name)
  own = register.benchmark(contract.parse_task_name(task).benchmark)
  rows = register.benchmark(run.benchmark) if run.benchmark else None
  if run.score_labels and not own.labels and not (rows and rows.options):
    raise ValueError(
      f'SCORE_LABELS is True, but {own.name!r} has no closed set of labels.'
      ' Leave it out, or set BENCHMARK where rows have choices.'
    )
  return answering.Answering(
    task=task,
    model=run.model,
    prefixes=prefixes,
    labels=tuple(own.labels),
    batch_size=run.eval_batch_size,
    max_decode_len=run.max_decode_len,
    max_rationale_len=run.max_rationale_len,
    num_beams=run.num_beams,
    rationales=run.rationales,
    score_labels=run.score_labels,
  )


def _digest(params: Any) -> str:
  """Identifies a checkpoint by the bits of its small parameters."""
  hasher = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    if leaf.size <= _SMALL:
      hasher.update(np.asarray(leaf, np.float32).tobytes())
  return hasher.hexdigest()


@contextlib.contextmanager
def _open_input(name: str) -> Iterator[BinaryIO]:
  if name == STREAM:
    yield sys.stdin.buffer
    return
  with open(name, 'rb') as file:
    yield file
