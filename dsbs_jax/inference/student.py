# SPDX-License-Identifier: Apache-2.0
"""A trained student: which it is, what it is asked, and how it is opened."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import partitioning
from dsbs_jax.core.t5 import network
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import forms, register, vocabularies
from dsbs_jax.inference import (
  decode_functions,
  evaluate_checkpoint,
  evaluator,
  length_buckets,
  output_split,
  predictor,
)
from dsbs_jax.interop import read_checkpoint
from dsbs_jax.runs import checkpoints
from dsbs_jax.runtime import compilation_cache, field_checks, progress

# Parameters up to this size stand for a checkpoint's identity.
_SMALL = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig:
  """The settings that inference and serving share.

  Attributes:
    checkpoint_path: as in evaluation.
    mixture_or_task_name: what the student was trained on; its label form is
      what it is asked.
    step: as in evaluation.
    allow_pickle: as in evaluation.
    benchmark: name of the benchmark whose raw rows it is asked about; None
      where inputs are text, or objects with `input`.
    rationales: whether to write the student's rationales too.
    score_labels: whether to choose the likeliest label of the closed set
      rather than generating one.
    vocabulary: as in training.
    prefixes: as in training.
    model: the network.
    max_decode_len: tokens of a label at most.
    max_rationale_len: tokens of a rationale at most.
    num_beams: 1 for greedy decoding.
    mesh: as in training.
    sharding_rules: as in training.
  """

  checkpoint_path: str
  mixture_or_task_name: str
  step: str | int
  benchmark: str | None
  rationales: bool
  score_labels: bool
  vocabulary: str | None
  prefixes: str | None
  model: network.T5Config
  max_decode_len: int
  max_rationale_len: int
  num_beams: int
  mesh: str | None
  sharding_rules: Callable[[], partitioning.Rules]
  allow_pickle: bool = False

  def __post_init__(self):
    field_checks.texts(self, 'checkpoint_path')
    field_checks.texts_or_none(self, 'benchmark', 'vocabulary', 'prefixes')
    field_checks.counts(
      self, 'max_decode_len', 'max_rationale_len', 'num_beams'
    )
    field_checks.flags(self, 'rationales', 'score_labels', 'allow_pickle')
    field_checks.functions(self, 'sharding_rules')
    form = contract.parse_task_name(self.mixture_or_task_name).form
    if form == 'rationale':
      raise contract.UserError(
        f'{self.mixture_or_task_name} has no label to predict, expected a task'
        ' or mixture with labels, such as cqa_gt_dsbs. Set'
        ' MIXTURE_OR_TASK_NAME.'
      )
    if self.rationales and form == 'finetune':
      raise contract.UserError(
        f'RATIONALES is True, but {self.mixture_or_task_name} teaches none.'
        ' Leave it out, or take a student of _dsbs, _single or _answer_first.'
      )
    if self.rationales and self.score_labels and form == 'answer_first':
      raise contract.UserError(
        f'RATIONALES and SCORE_LABELS are True, but {self.mixture_or_task_name}'
        ' writes its rationale for the label that it generates, not for the'
        ' likeliest of the set. Leave one of the two out.'
      )

  @property
  def taught(self) -> benchmark_lib.Benchmark:
    """The benchmark that it was trained on."""
    name = contract.parse_task_name(self.mixture_or_task_name).benchmark
    return register.benchmark(name)

  @property
  def row_benchmark(self) -> benchmark_lib.Benchmark | None:
    """The benchmark of the rows that it is asked about."""
    return register.benchmark(self.benchmark) if self.benchmark else None

  def answering(self, *, batch_size: int) -> predictor.PredictorConfig:
    """How it answers."""
    own, rows = self.taught, self.row_benchmark
    if self.score_labels and not own.labels and not (rows and rows.options):
      raise contract.UserError(
        f'SCORE_LABELS is True, but {own.name!r} has no closed set of labels.'
        ' Leave it out, or set BENCHMARK where rows have choices.'
      )
    source = register.source(prefixes=self.prefixes)
    return predictor.PredictorConfig(
      task=evaluator.evaluated_task(self.mixture_or_task_name),
      model=self.model,
      prefixes=forms.prefixes(source.prefixes),
      labels=tuple(own.labels),
      batch_size=batch_size,
      max_decode_len=self.max_decode_len,
      max_rationale_len=self.max_rationale_len,
      num_beams=self.num_beams,
      rationales=self.rationales,
      score_labels=self.score_labels,
    )

  def load_vocabulary(self) -> vocabularies.Vocabulary:
    """The vocabulary of its texts."""
    source = register.source(vocabulary=self.vocabulary)
    return vocabularies.load(source.vocabulary)


@dataclasses.dataclass(frozen=True)
class LoadedStudent:
  """A student that answers.

  Attributes:
    answerer: asks it.
    programs: what it is computed with.
    facts: JSON facts on which every answer depends.
  """

  answerer: predictor.Predictor
  programs: decode_functions.DecodeFns
  facts: dict[str, Any]


def load_student(
  student: StudentConfig,
  *,
  batch_size: int = 1,
  shapes: length_buckets.BatchShapes | None = None,
) -> LoadedStudent:
  """Reads the checkpoint.

  Args:
    student: which one.
    batch_size: rows per batch, where no shapes are given.
    shapes: of the batches.

  Returns:
    The student, ready to be asked.

  Raises:
    UserError: there is no such checkpoint, or it does not fit.
  """
  compilation_cache.use_cache()
  mesh = partitioning.make_mesh(student.mesh)
  vocabulary = student.load_vocabulary()
  settings = student.answering(batch_size=batch_size)
  param_shapes = network.param_shapes(student.model)
  shardings = partitioning.shardings(
    param_shapes, mesh, student.sharding_rules()
  )
  path, step = evaluate_checkpoint.find_checkpoint(
    student.checkpoint_path, student.step
  )
  progress.say(f'reading {path}')
  params = read_checkpoint.load_params(
    path,
    student.model,
    like=checkpoints.shapes_with_shardings(param_shapes, shardings),
    vocabulary_fingerprint=vocabulary.fingerprint,
    allow_pickle=student.allow_pickle,
  )
  facts = dataclasses.asdict(settings) | {
    'step': step,
    'parameters': _digest(params),
    'vocabulary': vocabulary.fingerprint,
    'benchmark': student.benchmark,
  }
  # How the work is cut up decides no answer.
  facts.pop('batch_size')
  computed = decode_functions.DecodeFns(
    student.model,
    params,
    mesh=mesh,
    param_shardings=shardings,
    max_decode_len=student.max_decode_len,
    max_rationale_len=student.max_rationale_len,
    num_beams=student.num_beams,
    stop=()
    if settings.rationales
    else output_split.stop_ids(settings.form, vocabulary=vocabulary),
  )
  answerer = predictor.Predictor(
    settings, computed, vocabulary=vocabulary, shapes=shapes
  )
  return LoadedStudent(answerer, computed, facts)


def _digest(params: Any) -> str:
  """Identifies a checkpoint by the bits of its small parameters."""
  hasher = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    if leaf.size <= _SMALL:
      hasher.update(np.asarray(leaf, np.float32).tobytes())
  return hasher.hexdigest()
