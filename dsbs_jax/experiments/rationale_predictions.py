# SPDX-License-Identifier: Apache-2.0
"""Writes the rationales that a trained student generates.

Evaluation decodes labels only. What a student writes for the rationale task
shows what it has learned, so the report prints it beside the labels if the
run's `predictions/` has a file of the rationale task.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import rich.box
import rich.table
import rich.text

from dsbs_jax import contract
from dsbs_jax.core import decoding, partitioning
from dsbs_jax.core.t5 import network
from dsbs_jax.data import register
from dsbs_jax.data.batching import loader
from dsbs_jax.data.prepared import tokens
from dsbs_jax.experiments import jobs
from dsbs_jax.inference import cpu_threads, evaluator
from dsbs_jax.interop import read_checkpoint
from dsbs_jax.reporting import example_browser
from dsbs_jax.runs import checkpoints, run_folder
from dsbs_jax.runtime import terminal_text
from dsbs_jax.training import train_config


def write_rationales(
  run: train_config.TrainConfig,
  *,
  split: str = run_folder.TEST,
  max_decode_len: int,
) -> pathlib.Path:
  """Decodes the rationales of a split and writes them as predictions.

  Args:
    run: settings of a finished run on a mixture of label and rationale.
    split: whose inputs to explain.
    max_decode_len: tokens of a rationale at most.

  Returns:
    The file: one JSON line per example, in the split's order, with the keys of
    `evaluator.Evaluator.write`.

  Raises:
    UserError: the run has no checkpoint, or its data is gone.
  """
  name = contract.parse_task_name(run.mixture_or_task_name).benchmark
  source = register.source(
    data_dir=run.data_dir, vocabulary=run.vocabulary, prefixes=run.prefixes
  )
  data = tokens.load(f'{name}_rationale', split, source)
  path, step = checkpoints.find_checkpoint(run.model_dir, 'best')
  texts = _decode(
    _read_params(run, path),
    run.model,
    data,
    mesh=partitioning.make_mesh(run.mesh),
    batch_size=run.eval_batch_size,
    max_decode_len=max_decode_len,
  )
  lines = (
    {
      'index': int(data.index[i]),
      'id': data.example_id(i),
      'input': data.input_text(i),
      'target': data.target_text(i),
      'prediction': text,
    }
    for i, text in enumerate(texts)
  )
  folder = pathlib.Path(run.model_dir) / evaluator.PREDICTIONS
  folder.mkdir(exist_ok=True)
  file = folder / f'{data.name}-{split}-{step:06}.jsonl'
  partial = file.with_suffix('.tmp')
  partial.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  partial.replace(file)
  return file


def side_by_side(
  runs: Mapping[str, jobs.Job], explained: pathlib.Path, *, title: str, num: int
) -> rich.table.Table:
  """A table of the first examples with the predictions of several runs.

  Args:
    runs: column title -> a finished run, all on the same benchmark.
    explained: predictions of the rationale task, written by the last run.
    title: of the table.
    num: how many examples.

  Returns:
    The table.
  """
  rationales = example_browser.read_predictions(explained)
  columns = [_predictions(job) for job in runs.values()]
  table = rich.table.Table(title=title, box=rich.box.SIMPLE)
  for name in ('Input', 'Gold', *runs, 'Its rationale'):
    table.add_column(name)
  for index in list(rationales)[:num]:
    rationale = rationales[index]
    table.add_row(
      _plain(rationale['input'].strip()),
      _plain(columns[0][index]['target']),
      *(_plain(labels[index]['prediction']) for labels in columns),
      _plain(rationale['prediction']),
    )
  return table


def _plain(text: str) -> rich.text.Text:
  """Text of a model, with markup and terminal commands made harmless."""
  return rich.text.Text(terminal_text.visible(text))


def _read_params(run: train_config.TrainConfig, path: pathlib.Path):
  """The parameters of a checkpoint, in the run's shardings."""
  shapes = network.param_shapes(run.model)
  shardings = partitioning.shardings(
    shapes, partitioning.make_mesh(run.mesh), run.sharding_rules()
  )
  return read_checkpoint.load_params(
    path,
    run.model,
    like=checkpoints.shapes_with_shardings(shapes, shardings),
  )


def _decode(
  params,
  model: network.T5Config,
  data: tokens.Tokens,
  *,
  mesh: jax.sharding.Mesh,
  batch_size: int,
  max_decode_len: int,
) -> list[str]:
  """The decoded output of each example, in the order of the data."""
  decode = cpu_threads.per_core(
    jax.jit(
      lambda params, rows: decoding.greedy(
        params, model, rows, max_decode_len=max_decode_len
      )
    ),
    mesh,
  )
  texts = [''] * len(data)
  for positions, rows in loader.eval_batches(data, batch_size):
    ids = decode(params, rows)
    for position, row in zip(positions, ids, strict=True):
      if position >= 0:
        texts[position] = data.vocabulary.decode(row.tolist())
  return texts


def _predictions(job: jobs.Job) -> dict[int, dict[str, Any]]:
  """A run's labels at its best step on validation, by index."""
  _, step = checkpoints.find_checkpoint(str(job.path), 'best')
  task = evaluator.evaluated_task(job.point.task)
  name = f'{task}-{run_folder.TEST}-{step:06}.jsonl'
  return example_browser.read_predictions(
    job.path / evaluator.PREDICTIONS / name
  )
