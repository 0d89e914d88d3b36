# SPDX-License-Identifier: Apache-2.0
"""Asks an exported folder what its student was evaluated on.

The folder's own `run.py` answers, and the built-in engine with the parameters
that were exported: their accuracies, and the share of equal labels.
"""

import dataclasses
import importlib.util
import itertools
import json
import pathlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import partitioning
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import register, task_forms
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.exporting import checkpoint_facts
from dsbs_jax.inference import length_buckets
from dsbs_jax.inference.backends import decode_functions
from dsbs_jax.runs import run_metadata
from dsbs_jax.runtime import progress

NOTHING = 'none'

_BATCH = 64
_SPLITS = ('test', 'validation')


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckConfig:
  """What an exported folder is asked.

  Attributes:
    source: a prepared split; or a file of JSON lines with "input" and, where it
      is known, "label"; 'none' asks nothing. None takes test or validation.
    max_rows: examples at most.
    max_drop: points of accuracy that may be lost; where labels are not known,
      percent of labels that may differ.
  """

  source: str | None = None
  max_rows: int = 1000
  max_drop: float = 1.0


@dataclasses.dataclass(frozen=True)
class _Questions:
  """What is asked.

  Attributes:
    inputs: texts without a prefix.
    labels: texts; None where they are not known.
    benchmark: whose metric scores; None for equality.
  """

  name: str
  inputs: list[str]
  labels: list[str] | None
  benchmark: benchmark_lib.Benchmark | None = None


def check(
  folder: pathlib.Path,
  found: checkpoint_facts.Checkpoint,
  params: Any,
  vocabulary: vocabularies.Vocabulary,
  config: CheckConfig,
) -> tuple[str, bool]:
  """Answers with the exported folder and the parameters, compares.

  Returns:
    What came out in a sentence, and whether more was lost than may be.

  Raises:
    UserError: the file cannot be read, or there is no such split.
  """
  if config.source == NOTHING:
    return 'Its answers were not checked.', False
  asked = _questions(found, vocabulary, config)
  if asked is None:
    return 'Its answers were not checked: the data is not here.', False
  try:
    run = load_program(folder / 'run.py')
  except ModuleNotFoundError as error:
    said = f'{error.name}, which run.py needs, is not installed here'
    return f'Its answers were not checked: {said}.', False
  progress.say(f'answering {len(asked.inputs):,} examples of {asked.name}')
  settings = json.loads((folder / 'settings.json').read_text())
  student = run.Student(folder)
  theirs = []
  for first in range(0, len(asked.inputs), _BATCH):
    theirs += student.generate(asked.inputs[first : first + _BATCH])
  ours = _greedy(
    found,
    params,
    vocabulary.encode_inputs([found.prefix + text for text in asked.inputs]),
    length=settings['output_length'],
  )

  def answer(ids):
    if found.task is None:
      return vocabulary.decode(ids)
    return task_forms.decode_answer(
      str(found.answered_task), np.array(ids, np.int32), vocabulary=vocabulary
    )

  answers = [[answer(ids) for ids in rows] for rows in (theirs, ours)]
  return _compare(asked, *answers, max_drop=config.max_drop)


def _compare(
  asked: _Questions,
  theirs: Sequence[str],
  ours: Sequence[str],
  *,
  max_drop: float,
) -> tuple[str, bool]:
  equal = 100 * np.mean([a == b for a, b in zip(theirs, ours, strict=True)])
  text = f'Of {len(ours):,} examples of {asked.name}, it answers {equal:.2f} %'
  text += ' as the student does'
  lost = 100 - equal
  if asked.labels is not None:
    scores = [_accuracy(asked, answers) for answers in (theirs, ours)]
    lost = scores[1] - scores[0]
    text += f'; accuracy {scores[0]:.2f} %, the student {scores[1]:.2f} %'
  if lost > max_drop:
    text += f': a drop of {lost:.2f}, more than the {max_drop:g} allowed'
  return f'{text}.', bool(lost > max_drop)


def _accuracy(asked: _Questions, answers: Sequence[str]) -> float:
  if asked.benchmark is None:
    pairs = zip(asked.labels, answers, strict=True)
    return 100 * float(np.mean([label == answer for label, answer in pairs]))
  scores = asked.benchmark.metric(asked.labels, list(answers))
  return float(next(iter(scores.values())))


def _questions(
  found: checkpoint_facts.Checkpoint,
  vocabulary: vocabularies.Vocabulary,
  config: CheckConfig,
) -> _Questions | None:
  """What is asked; None where the prepared data is gone."""
  if config.source and pathlib.Path(config.source).is_file():
    return read_questions(pathlib.Path(config.source), config.max_rows)
  macros = run_metadata.macros(found.path)
  data = checkpoint_facts.prepared_data(found, macros)
  if data is None:
    if config.source:
      raise contract.UserError(
        f'--check is {config.source!r}, expected a file, or a split of the'
        " run's prepared data, which is not here. Prepare it, or give a file."
      )
    return None
  splits = [config.source] if config.source else _SPLITS
  known = [split for split in splits if split in data.splits]
  if not known:
    raise contract.UserError(
      f'--check is {config.source!r}, expected a file or one of'
      f' {tuple(data.splits)}.'
    )
  rows = list(
    itertools.islice(data.examples(known[0], chunk=_BATCH), config.max_rows)
  )
  name = found.task.benchmark
  return _Questions(
    f'{name} {known[0]}',
    [row.input for row in rows],
    [
      task_forms.round_trip(row.gt_label, vocabulary=vocabulary) for row in rows
    ],
    register.benchmark(name, data_dir=macros.get('DATA_DIR')),
  )


def read_questions(path: pathlib.Path, max_rows: int) -> _Questions:
  """The questions in a file of JSON lines.

  Raises:
    UserError: a line is no question, or there is none.
  """
  inputs, labels = [], []
  with path.open(encoding='utf-8-sig') as file:
    for number, line in enumerate(itertools.islice(file, max_rows), 1):
      if not line.strip():
        continue
      try:
        values = json.loads(line)
        if values['input'] is None:
          raise TypeError('input is null')
        inputs.append(str(values['input']))
        label = values.get('label')  # a number may be one
        labels.append(None if label is None else str(label))
      except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise contract.UserError(
          f'{path}:{number} is not a question ({error!r:.80}), expected JSON'
          ' with "input" and, where it is known, "label".'
        ) from error
  if not inputs:
    raise contract.UserError(f'{path} is empty, expected JSON lines.')
  return _Questions(path.name, inputs, None if None in labels else labels)


def _greedy(
  found: checkpoint_facts.Checkpoint,
  params: Any,
  ids: Sequence[Sequence[int]],
  *,
  length: int,
) -> list[list[int]]:
  """What the built-in engine generates for inputs, in their order."""
  mesh = partitioning.make_mesh('1x1')
  decode = decode_functions.jit_decode(
    found.config, mesh, max_decode_len=length
  )
  shapes = length_buckets.LengthBuckets(_BATCH)
  outputs: dict[int, list[int]] = {}
  order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
  for first in range(0, len(order), _BATCH):
    positions = order[first : first + _BATCH]
    width = shapes.input_length(len(ids[positions[0]]))
    tokens = np.zeros((_BATCH, width), np.int32)
    for row, position in zip(tokens, positions, strict=False):
      row[: len(ids[position])] = ids[position]
    decoded = decode(params, {'encoder_input_tokens': tokens}).tolist()
    outputs |= dict(zip(positions, decoded, strict=False))
  return [outputs[i] for i in range(len(ids))]


def load_program(path: pathlib.Path) -> ModuleType:
  """The exported run.py, as a module."""
  spec = importlib.util.spec_from_file_location('exported_run', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
