# SPDX-License-Identifier: Apache-2.0
"""Evaluates one checkpoint, ours or another's, on the prepared splits."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

from dsbs_jax import contract
from dsbs_jax.core import partitioning
from dsbs_jax.core.t5 import network
from dsbs_jax.data import register, vocabularies
from dsbs_jax.inference import evaluator as evaluator_lib
from dsbs_jax.interop import read_checkpoint
from dsbs_jax.runs import checkpoints
from dsbs_jax.runtime import compilation_cache, field_checks, files, progress

SCORES_FILE = 'eval.jsonl'


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """Settings of an evaluation; gin/eval.gin binds every field.

  Attributes:
    checkpoint_path: a run's folder, one of its checkpoints, or a T5X or
      Hugging Face checkpoint.
    mixture_or_task_name: what it was trained on, or a task of it.
    step: 'latest', 'best' (on validation) or a number; only a run's folder
      leaves the choice.
    allow_pickle: whether weights may be a pickled pytorch_model.bin, read by
      torch's weights-only loader.
    output_dir: where scores and predictions go; None for the checkpoint's run.
    data_dir: as in training.
    vocabulary: as in training.
    prefixes: as in training.
    model: the network.
    eval_splits: splits to evaluate.
    eval_batch_size: rows per decoding batch.
    max_decode_len: target tokens to generate at most.
    num_beams: 1 for greedy decoding.
    score_labels: whether to answer by the likeliest label of the closed set,
      or of an example's choices, rather than generate one.
    mesh: as in training.
    sharding_rules: as in training.
  """

  checkpoint_path: str
  mixture_or_task_name: str
  step: str | int
  allow_pickle: bool = False
  output_dir: str | None
  data_dir: str | None
  vocabulary: str | None
  prefixes: str | None
  model: network.T5Config
  eval_splits: tuple[str, ...]
  eval_batch_size: int
  max_decode_len: int
  num_beams: int
  score_labels: bool
  mesh: str | None
  sharding_rules: Callable[[], partitioning.Rules]

  def __post_init__(self):
    field_checks.texts(self, 'checkpoint_path', 'mixture_or_task_name')
    field_checks.texts_or_none(
      self, 'output_dir', 'data_dir', 'vocabulary', 'prefixes'
    )
    field_checks.counts(self, 'eval_batch_size', 'max_decode_len', 'num_beams')
    field_checks.splits(self, 'eval_splits')
    field_checks.flags(self, 'allow_pickle')
    field_checks.functions(self, 'sharding_rules')


def evaluate(run: EvalConfig) -> int:
  """Evaluates, prints the scores, writes them and the predictions.

  Args:
    run: all settings.

  Returns:
    The exit status, 0.

  Raises:
    UserError: there is no such checkpoint, or it does not fit the model, the
      vocabulary or the prepared data.
  """
  if run.output_dir:
    files.check_writable(run.output_dir)
  compilation_cache.use_cache()
  mesh = partitioning.make_mesh(run.mesh)
  source = register.source(
    data_dir=run.data_dir, vocabulary=run.vocabulary, prefixes=run.prefixes
  )
  vocabulary = vocabularies.load(source.vocabulary)
  shapes = network.param_shapes(run.model)
  shardings = partitioning.shardings(shapes, mesh, run.sharding_rules())
  path, step = find_checkpoint(run.checkpoint_path, run.step)
  progress.say(f'reading {path}')
  params = read_checkpoint.load_params(
    path,
    run.model,
    like=checkpoints.shapes_with_shardings(shapes, shardings),
    vocabulary_fingerprint=vocabulary.fingerprint,
    allow_pickle=run.allow_pickle,
  )
  evaluator = evaluator_lib.Evaluator(
    evaluator_lib.EvaluatorConfig(
      task=run.mixture_or_task_name,
      model=run.model,
      splits=run.eval_splits,
      batch_size=run.eval_batch_size,
      max_decode_len=run.max_decode_len,
      num_beams=run.num_beams,
      score_labels=run.score_labels,
    ),
    source=source,
    mesh=mesh,
    param_shardings=shardings,
  )
  if evaluator.task is None:
    raise contract.UserError(
      f'{run.mixture_or_task_name} has no label to score, expected a task or'
      ' mixture with labels, such as cqa_gt_dsbs. Set MIXTURE_OR_TASK_NAME.'
    )
  if not evaluator.splits:
    raise contract.UserError(
      f'none of the splits {run.eval_splits} of {run.mixture_or_task_name} is'
      f' prepared in {source.data_dir}. Run dsbs_jax.prepare.'
    )
  folder = pathlib.Path(run.output_dir or path.parent)
  if run.score_labels:
    progress.say('choosing the likeliest of the given labels, not generating')
  for split in evaluator.splits:
    predictions = evaluator.predict(params, split)
    metrics = evaluator.score(split, predictions)
    written = evaluator.write(folder, step, split, predictions)
    line = {
      'checkpoint': str(path),
      'step': step,
      'task': evaluator.task,
      'split': split,
      'answers': 'chosen' if run.score_labels else 'generated',
      **metrics,
    }
    with (folder / SCORES_FILE).open('a') as file:
      file.write(json.dumps(line) + '\n')
    shown = '  '.join(f'{name} {value:.2f}' for name, value in metrics.items())
    print(f'{evaluator.task} {split}  step {step:,}  {shown}  -> {written}')
  return 0


def find_checkpoint(
  checkpoint_path: str, step: str | int
) -> tuple[pathlib.Path, int]:
  """Turns a run's folder and a choice of step into one checkpoint.

  Args:
    checkpoint_path: a run's folder or any one checkpoint.
    step: 'latest', 'best' or a number; for a run's folder only.

  Returns:
    The checkpoint's folder and its step (0 where its name has none).

  Raises:
    UserError: the folder or the step does not exist.
  """
  path = pathlib.Path(checkpoint_path).absolute()
  if not any(path.glob(f'{checkpoints.PREFIX}_*')):
    if not path.exists():
      raise contract.UserError(
        f'there is no checkpoint at {str(path)!r}. Check CHECKPOINT_PATH.'
      )
    number = path.name.rpartition('_')[2]
    return path, int(number) if number.isdigit() else 0
  saved = checkpoints.Checkpoints(
    path, monitor='validation/accuracy', read_only=True
  )
  choice = {'latest': saved.latest_step(), 'best': saved.best_step()}.get(
    step, step
  )
  saved.close()
  folder = path / f'{checkpoints.PREFIX}_{choice}'
  if not folder.is_dir():
    names = sorted(p.name for p in path.glob(f'{checkpoints.PREFIX}_*'))
    raise contract.UserError(
      f'step is {step!r}, expected latest, best or the number of one of'
      f' {names}.'
    )
  return folder, int(choice)
