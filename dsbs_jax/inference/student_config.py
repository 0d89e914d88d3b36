# SPDX-License-Identifier: Apache-2.0
"""Which student answers: the settings that eval, infer and serve share."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import matmul_precision, network, partitioning
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import register, task_forms
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.inference import evaluator, predictor
from dsbs_jax.inference.backends import (
  backend,
  ct2_cache,
  ct2_engine,
  decode_functions,
)
from dsbs_jax.interop import read_checkpoint
from dsbs_jax.runs import checkpoint_folders, run_metadata
from dsbs_jax.runtime import compilation_cache, field_checks, progress

# Parameters of up to this many elements identify a checkpoint, of larger ones
# the first row.
_MAX_HASHED_SIZE = 1 << 16


@dataclasses.dataclass(frozen=True)
class LoadedCheckpoint:
  """A checkpoint that is ready to compute.

  Attributes:
    step: how many steps trained it; 0 where neither its name nor its export
      says it.
    params: the parameter tree on them; None with an engine.
    engine: CTranslate2 in place of jitted functions, which has its parameters.
    facts: what an engine's predictions depend on: its name, and the digest of
      its parameters.
  """

  path: pathlib.Path
  step: int
  mesh: jax.sharding.Mesh
  params: Any
  engine: ct2_engine.Engine | None
  facts: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
  """Which checkpoint answers, and how it decodes.

  Attributes:
    checkpoint_path: a run's folder, one of its checkpoints, or a T5X or
      Hugging Face checkpoint.
    mixture_or_task_name: what it was trained on, or a task of it; its labels
      are predicted.
    step: 'latest', 'best' (on validation) or a number; only a run's folder
      leaves the choice.
    allow_pickle: whether weights may be a pickled pytorch_model.bin, read by
      torch's weights-only loader.
    data_dir: the folder that `prepare` wrote to; None for the default one.
    vocabulary: SentencePiece path or 'bytes', with ':N' for N extra ids, or
      None for the public T5 vocabulary.
    prefixes: 'paper' ([label]), 'code' (predict: ), None for the default.
    module: your own module that registers the benchmark.
    matmul_precision: how float32 factors are multiplied, such as
      'tensorfloat32' or 'bfloat16'; None as float32, unless the variable
      JAX_DEFAULT_MATMUL_PRECISION says otherwise.
    max_decode_len: tokens of a label at most.
    num_beams: 1 for greedy decoding.
    score_labels: whether to take the likeliest label of the closed set, or of
      an example's choices, rather than generate one.
    mesh: (data, model) devices such as '4x2'; None for all devices as data.
    sharding_rules: makes the table of core/partitioning.py to shard by.
    backend: who computes: 'jax', the built-in engine; 'ct2' or 'ct2_int8',
      CTranslate2 on CPUs, in float32 or int8; 'auto' takes ct2 where it is
      installed and faster.
  """

  DERIVED_MACROS: ClassVar = register.DERIVED_MACROS

  checkpoint_path: str
  mixture_or_task_name: str
  step: str | int
  allow_pickle: bool = False
  data_dir: str | None = None
  vocabulary: str | None
  prefixes: str | None
  module: str | None = None
  model: network.Config
  max_decode_len: int
  num_beams: int
  score_labels: bool
  mesh: str | None
  sharding_rules: Callable[[], partitioning.Rules]
  backend: str = backend.AUTO
  matmul_precision: str | None = None

  def __post_init__(self):
    field_checks.texts(self, 'checkpoint_path', 'mixture_or_task_name')
    field_checks.one_of(self, 'backend', backend.BACKENDS)
    field_checks.one_of(
      self, 'matmul_precision', (None, *matmul_precision.NAMES)
    )
    field_checks.texts_or_none(
      self, 'data_dir', 'vocabulary', 'prefixes', 'module'
    )
    field_checks.counts(self, 'max_decode_len', 'num_beams')
    field_checks.flags(self, 'score_labels', 'allow_pickle')
    field_checks.functions(self, 'sharding_rules')
    if evaluator.evaluated_task(self.mixture_or_task_name) is None:
      raise contract.UserError(
        f'{self.mixture_or_task_name} has no label to predict, expected a task'
        ' or mixture with labels, such as cqa_gt_dsbs. Set'
        ' MIXTURE_OR_TASK_NAME.'
      )
    if self.module is not None:
      register.load_module(self.module)

  def load_vocabulary(self) -> vocabularies.Vocabulary:
    """The vocabulary of its texts."""
    source = register.source(vocabulary=self.vocabulary)
    return vocabularies.load(source.vocabulary)

  def load(self, *, generates: bool, num_options: int) -> LoadedCheckpoint:
    """Reads the checkpoint for the backend that suits the work.

    Of the built-in engine each device reads its own part of the parameters.

    Args:
      generates: whether labels are decoded, not only ranked.
      num_options: outputs that are scored per input, at most; 0 for none.

    Raises:
      UserError: there is no such checkpoint, it does not fit the model or the
        vocabulary, the backend cannot do the work, or the variable names
        another precision.
    """
    work = backend.Work(
      model=self.model,
      num_beams=self.num_beams,
      mesh=self.mesh,
      generates=generates,
      num_options=num_options,
    )
    chosen = backend.choose(self.backend, work)
    if chosen == backend.JAX:
      matmul_precision.use(self.matmul_precision)
      compilation_cache.use_cache()
    mesh = partitioning.make_mesh(self.mesh)
    path, step = checkpoint_folders.find_checkpoint(
      self.checkpoint_path, self.step
    )
    vocabularies.check_size(self.load_vocabulary(), self.model.vocab_size)
    choice = checkpoint_folders.describe_choice(self.checkpoint_path, self.step)
    progress.say(f'reading {path}{choice}')
    step = run_metadata.trained_steps(path, step)
    if chosen != backend.JAX:
      engine, facts = self._load_ct2(path, chosen)
      facts |= {'backend': chosen}
      return LoadedCheckpoint(path, step, mesh, None, engine, facts)
    shapes, rules = network.param_shapes(self.model), self.sharding_rules()
    params = self._read(path, partitioning.shardings(shapes, mesh, rules))
    return LoadedCheckpoint(path, step, mesh, params, None, {})

  def _load_ct2(
    self, path: pathlib.Path, chosen: str
  ) -> tuple[ct2_engine.Engine, dict[str, str]]:
    """Opens it in CTranslate2, converted the first time; and its digest."""

    def read():
      params = self._read(path)
      decode_functions.check_finite(
        not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
      )
      return params, {'parameters': hash_params(params)}

    return ct2_cache.load(
      path,
      read,
      self.model,
      quantization=backend.QUANTIZATIONS[chosen],
      vocabulary=self.load_vocabulary().fingerprint,
    )

  def _read(self, path: pathlib.Path, shardings: Any = None) -> Any:
    return read_checkpoint.load_params(
      path,
      self.model,
      shardings=shardings,
      vocabulary=self.load_vocabulary(),
      allow_pickle=self.allow_pickle,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig(CheckpointConfig):
  """The settings that infer and serve share.

  Attributes:
    benchmark: whose raw rows the inputs are; None for plain text.
    rationales: whether to predict rationales beside the labels.
    max_rationale_len: tokens of a rationale at most; decoded greedily.
  """

  benchmark: str | None
  rationales: bool
  max_rationale_len: int

  def __post_init__(self):
    form = contract.parse_task_name(self.mixture_or_task_name).form
    super().__post_init__()
    field_checks.texts_or_none(self, 'benchmark')
    field_checks.counts(self, 'max_rationale_len')
    field_checks.flags(self, 'rationales')
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
  def trained_benchmark(self) -> benchmark_lib.Benchmark:
    """The benchmark that it was trained on."""
    name = contract.parse_task_name(self.mixture_or_task_name).benchmark
    return register.benchmark(name, data_dir=self.data_dir)

  @property
  def row_benchmark(self) -> benchmark_lib.Benchmark | None:
    """The benchmark whose raw rows are its inputs."""
    if not self.benchmark:
      return None
    return register.benchmark(self.benchmark, data_dir=self.data_dir)

  def reading_rows(self) -> Self:
    """The same student, whose inputs are raw rows of its own benchmark."""
    return dataclasses.replace(self, benchmark=self.trained_benchmark.name)

  @property
  def max_given_choices(self) -> int:
    """Choices that an input brings along, at most as far as is known."""
    rows = self.row_benchmark
    return backend.MANY if rows and rows.options else 0

  def predictor_config(self) -> predictor.PredictorConfig:
    """How it predicts."""
    trained, rows = self.trained_benchmark, self.row_benchmark
    if self.score_labels and not trained.labels and not (rows and rows.options):
      raise contract.UserError(
        f'SCORE_LABELS is True, but {trained.name!r} has no closed set of'
        ' labels. Leave it out, or set BENCHMARK where rows have choices.'
      )
    source = register.source(prefixes=self.prefixes)
    return predictor.PredictorConfig(
      task=evaluator.evaluated_task(self.mixture_or_task_name),
      model=self.model,
      prefixes=task_forms.prefixes(source.prefixes),
      labels=tuple(trained.labels),
      max_decode_len=self.max_decode_len,
      max_rationale_len=self.max_rationale_len,
      num_beams=self.num_beams,
      rationales=self.rationales,
      score_labels=self.score_labels,
    )


def hash_params(params: Any) -> str:
  """SHA-256 of the small parameters, and of a row of each large one.

  Training changes all of them; LoRA leaves the small ones as they were.
  """
  hasher = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    if leaf.size > _MAX_HASHED_SIZE:
      leaf = leaf[(0,) * (leaf.ndim - 1)]
    hasher.update(np.asarray(leaf, np.float32).tobytes())
  return hasher.hexdigest()
