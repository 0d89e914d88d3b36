# SPDX-License-Identifier: Apache-2.0
"""Decodes a split, scores it, writes the predictions.

A model is evaluated on the task it is deployed for: one trained on
`cqa_gt_dsbs` predicts the labels of `cqa_gt_label`. Outputs are generated, as
in the paper, or chosen among given labels (see `option_scoring`), and scored by
the benchmark's metric, the function that seqio's evaluator calls too.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dsbs_jax import contract
from dsbs_jax.core import network, partitioning
from dsbs_jax.data import register, task_forms
from dsbs_jax.data.batching import eval_loader, loader
from dsbs_jax.data.prepared import tokens, views
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.inference import label_check, option_scoring, output_split
from dsbs_jax.inference.backends import ct2_engine, decode_functions
from dsbs_jax.runs import metrics_log
from dsbs_jax.runtime import files, progress, signals

PREDICTIONS = 'predictions'


def evaluated_task(name: str) -> str | None:
  """The task whose labels a model trained on `name` predicts.

  None where there is no label to predict: a model that learned rationales
  or another task only, or a seqio task that is none of this project's.
  """
  parts = views.own_name(name)
  if parts is None or parts.form in contract.WITHOUT_LABEL:
    return None
  if parts.form == 'dsbs':
    parts = dataclasses.replace(parts, form='label')
  return str(parts)


def predictions_file(
  folder: pathlib.Path,
  task: str,
  split: str,
  *,
  step: int,
  how: str = '',
) -> pathlib.Path:
  """Where the predictions of a task are written.

  Args:
    how: they were made other than a run makes its own, such as 'chosen'.
  """
  how = f'-{how}' if how else ''
  return folder / PREDICTIONS / f'{task}-{split}-{step:06}{how}.jsonl'


class Evaluator:
  """Evaluates parameters on the splits of a task; compiles once per shape.

  Args:
    task: what to predict, see `evaluated_task`; None evaluates nothing.
    splits: which splits; those that are not prepared are left out.
    batch_size: rows per decoding batch over all devices.
    engine: computes in place of jitted functions; parameters are then not read.
  """

  def __init__(
    self,
    task: str | None,
    model: network.Config,
    *,
    splits: Sequence[str],
    batch_size: int,
    max_decode_len: int = 64,
    num_beams: int = 1,
    score_labels: bool = False,
    source: tokens.Source,
    mesh: jax.sharding.Mesh,
    engine: ct2_engine.Engine | None = None,
  ):
    self.task, self._model, self._mesh = task, model, mesh
    self._batch_size = batch_size
    self._splits, self._labels, self._score = {}, {}, None
    if task is None:
      return
    prepared = tokens.splits(task, source)
    self._splits = {
      split: tokens.load(task, split, source)
      for split in splits
      if split in prepared
    }
    parts = contract.parse_task_name(task)
    vocabulary = vocabularies.load(source.vocabulary)
    stop = output_split.stop_ids(parts.form, vocabulary=vocabulary)
    for split, data in self._splits.items():
      longest = _longest(data, stop)
      if longest > max_decode_len and not score_labels:
        progress.say(
          f'{task} {split} has targets of up to {longest} tokens, but'
          f' MAX_DECODE_LEN is {max_decode_len}: longer answers are'
          ' cut and count as wrong.'
        )
    if score_labels:
      self._labels = {
        split: option_scoring.label_options(task, split, source)
        for split in self._splits
      }
      self._score = (
        engine.score_fn if engine else decode_functions.jit_score(model, mesh)
      )
    known = register.benchmark(parts.benchmark, data_dir=source.data_dir)
    label_check.check(known, self._splits)
    self._metric = known.metric
    if engine is not None:
      self._decode = engine.decode_fn(max_decode_len=max_decode_len, stop=stop)
      return
    self._decode = decode_functions.jit_decode(
      model, mesh, max_decode_len=max_decode_len, num_beams=num_beams, stop=stop
    )

  @property
  def splits(self) -> tuple[str, ...]:
    """The splits that are evaluated."""
    return tuple(self._splits)

  def evaluate_all(
    self,
    params: Any,
    step: int,
    model_dir: str | pathlib.Path,
    log: metrics_log.MetricsLog,
    *,
    done: Mapping[str, Mapping[str, float]] | None,
    stop: signals.StopRequest | None,
  ) -> dict[str, float] | None:
    """Evaluates every split, writes the predictions and logs the scores.

    Args:
      model_dir: predictions go to its folder `predictions`, from process 0.
      done: splits that are logged already -> their metrics.
      stop: asked before every batch.

    Returns:
      '<split>/<metric>' -> value; None where it was stopped. What was logged
      until then stays.
    """
    found = dict(done or {})
    for split in self._splits:
      if split not in found:
        size = len(self._splits[split])
        log.say(f'evaluating {self.task} {split} ({size:,})')
        predictions = self.predict(params, split, stop=stop)
        if predictions is None:
          return None
        found[split] = self.score(split, predictions)
        if jax.process_index() == 0:
          self.write(model_dir, step, split, predictions)
        log.evaluation(step, split, found[split])
    return {
      f'{split}/{name}': value
      for split in self._splits
      for name, value in found[split].items()
    }

  def predict(
    self,
    params: Any,
    split: str,
    *,
    stop: signals.StopRequest | None = None,
  ) -> list[str] | None:
    """Generates or chooses the answers of a split, in its order.

    Args:
      stop: asked before every batch that is generated.

    Returns:
      One text per example; None where it was stopped.

    Raises:
      UserError: logits are not finite.
    """
    data = self._splits[split]
    if self._score is not None:
      return option_scoring.rank_classify(
        self._score,
        params,
        data,
        labels=self._labels[split],
        form=contract.parse_task_name(self.task).form,
        vocab_size=self._model.vocab_size,
        mesh=self._mesh,
        batch_size=self._batch_size,
      )
    shard_info = loader.ShardInfo(
      jax.process_index(),
      jax.process_count(),
      row_multiple=self._mesh.shape[partitioning.DATA_AXIS],
    )
    sharding = partitioning.batch_sharding(self._mesh)
    predictions = [''] * len(data)
    for positions, rows in eval_loader.batches(
      data, self._batch_size, shard_info=shard_info
    ):
      if stop is not None and stop.requested():
        return None
      if jax.process_count() > 1:
        rows = partitioning.to_global(rows, sharding)
      decoded = self._decode(params, rows)
      for position, ids in zip(positions, decoded, strict=True):
        if position >= 0:
          predictions[position] = task_forms.decode_answer(
            self.task, ids, vocabulary=data.vocabulary
          )
    return predictions

  def score(self, split: str, predictions: Sequence[str]) -> dict[str, float]:
    """Metrics of predictions in the split's order: {'accuracy': percent}."""
    data = self._splits[split]
    targets = [data.answer(i) for i in range(len(data))]
    return {
      name: float(value)
      for name, value in self._metric(targets, list(predictions)).items()
    }

  def write(
    self,
    model_dir: str | pathlib.Path,
    step: int,
    split: str,
    predictions: Sequence[str],
    how: str = '',
  ) -> pathlib.Path:
    """Writes one JSON line per example, in the split's order; gives the file.

    Args:
      model_dir: the file goes to its folder `predictions`.
      how: see `predictions_file`; '' is what the evaluator knows of it.

    Raises:
      UserError: it cannot be written.
    """
    data = self._splits[split]
    path = predictions_file(
      pathlib.Path(model_dir),
      self.task,
      split,
      step=step,
      how=how or ('chosen' if self._score else ''),
    )
    lines = (
      {
        'index': int(data.index[i]),
        'id': data.example_id(i),
        'input': data.input_text(i),
        'target': data.answer(i),
        'prediction': prediction,
      }
      for i, prediction in enumerate(predictions)
    )
    with files.writing(path):
      path.parent.mkdir(exist_ok=True)
    files.replace_text(path, ''.join(json.dumps(x) + '\n' for x in lines))
    return path


def _longest(data: tokens.Tokens, stop: Sequence[int]) -> int:
  """Tokens that must be decoded for the longest answer of a split."""
  if not stop:
    return int(data.targets.lengths.max())
  answers = [data.answer(i) for i in range(len(data))]
  return max(map(len, data.vocabulary.encode_all(answers))) + len(stop)
