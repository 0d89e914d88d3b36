# SPDX-License-Identifier: Apache-2.0
"""Writes the rationales that a trained student generates.

Evaluation decodes labels only. What a student writes for the rationale task
shows what it has learned, so the report prints it beside the labels if the
run's `predictions/` has a file of the rationale task.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import rich.box
import rich.table
import rich.text

from dsbs_jax import contract
from dsbs_jax.core import partitioning
from dsbs_jax.data import register
from dsbs_jax.experiments import jobs
from dsbs_jax.inference import evaluator
from dsbs_jax.interop import read_checkpoint
from dsbs_jax.reporting import predictions
from dsbs_jax.runs import checkpoint_folders, run_folder
from dsbs_jax.runtime import terminal_text
from dsbs_jax.training import train_config


def write_rationales(
  run: train_config.TrainConfig, *, max_decode_len: int
) -> pathlib.Path:
  """Decodes the rationales of the test split and writes them as predictions.

  Args:
    run: settings of a finished run on a mixture of label and rationale.
    max_decode_len: tokens of a rationale at most.

  Returns:
    The file, as `evaluator.Evaluator.write` writes it.

  Raises:
    UserError: the run has no checkpoint, or its data is gone.
  """
  name = contract.parse_task_name(run.mixture_or_task_name).benchmark
  evaluating = evaluator.Evaluator(
    f'{name}_rationale',
    run.model,
    splits=(run_folder.TEST,),
    batch_size=run.eval_batch_size,
    max_decode_len=max_decode_len,
    source=register.source(
      data_dir=run.data_dir, vocabulary=run.vocabulary, prefixes=run.prefixes
    ),
    mesh=partitioning.make_mesh(run.mesh),
  )
  path, step = checkpoint_folders.find_checkpoint(run.model_dir, 'best')
  params = read_checkpoint.load_params(path, run.model)
  texts = evaluating.predict(params, run_folder.TEST)
  return evaluating.write(run.model_dir, step, run_folder.TEST, texts)


def side_by_side(
  runs: Mapping[str, jobs.Job], explained: pathlib.Path, *, title: str, num: int
) -> rich.table.Table:
  """A table of the first examples with the predictions of several runs.

  Args:
    runs: column title -> a finished run, all on the same benchmark.
    explained: predictions of the rationale task, written by the last run.
    title: of the table.
    num: how many examples.
  """
  rationales = predictions.read(explained)
  columns = [_predictions(job) for job in runs.values()]
  table = rich.table.Table(title=title, box=rich.box.SIMPLE)
  for name in ('Input', 'Gold', *runs, 'Its rationale'):
    table.add_column(name)
  for index in list(rationales)[:num]:
    texts = (
      rationales[index]['input'].strip(),
      columns[0][index]['target'],
      *(labels[index]['prediction'] for labels in columns),
      rationales[index]['prediction'],
    )
    table.add_row(*map(plain, texts))
  return table


def plain(text: str) -> rich.text.Text:
  """Text of a model, with markup and terminal commands made harmless."""
  return rich.text.Text(terminal_text.visible(text))


def _predictions(job: jobs.Job) -> dict[int, dict[str, Any]]:
  """A run's labels at its best step on validation, by index."""
  _, step = checkpoint_folders.find_checkpoint(str(job.path), 'best')
  task = evaluator.evaluated_task(job.point.task)
  return predictions.read(
    evaluator.predictions_file(job.path, task, run_folder.TEST, step=step)
  )
