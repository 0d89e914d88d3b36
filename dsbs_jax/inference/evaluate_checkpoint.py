# SPDX-License-Identifier: Apache-2.0
"""Evaluates one checkpoint, ours or another's, on the prepared splits."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import register
from dsbs_jax.data.prepared import tokens
from dsbs_jax.data.remote import buckets
from dsbs_jax.inference import evaluator as evaluator_lib
from dsbs_jax.inference import student_config
from dsbs_jax.inference.backends import backend
from dsbs_jax.runs import checkpoint_folders
from dsbs_jax.runtime import field_checks, files, progress

SCORES_FILE = 'eval.jsonl'


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig(student_config.CheckpointConfig):
  """Settings of an evaluation; gin/eval.gin binds every field.

  Attributes:
    output_dir: where scores and predictions go; None for the checkpoint's run,
      or the folder itself where it is of no run.
    eval_splits: splits to evaluate.
    eval_batch_size: rows per decoding batch.
  """

  output_dir: str | None
  eval_splits: tuple[str, ...]
  eval_batch_size: int

  def __post_init__(self):
    super().__post_init__()
    field_checks.texts_or_none(self, 'output_dir')
    field_checks.counts(self, 'eval_batch_size')
    field_checks.splits(self, 'eval_splits')


def evaluate(config: EvalConfig) -> None:
  """Evaluates, prints the scores, writes them and the predictions.

  Raises:
    UserError: there is no such checkpoint, or it does not fit the model, the
      vocabulary or the prepared data.
  """
  if config.output_dir:
    files.check_writable(config.output_dir)
  source = register.source(
    data_dir=config.data_dir,
    vocabulary=config.vocabulary,
    prefixes=config.prefixes,
  )
  loaded = config.load(generates=not config.score_labels, num_options=0)
  evaluator = evaluator_lib.Evaluator(
    evaluator_lib.evaluated_task(config.mixture_or_task_name),
    config.model,
    splits=config.eval_splits,
    batch_size=config.eval_batch_size,
    max_decode_len=config.max_decode_len,
    num_beams=config.num_beams,
    score_labels=config.score_labels,
    source=source,
    mesh=loaded.mesh,
    engine=loaded.engine,
  )
  if not evaluator.splits:
    raise contract.UserError(
      f'none of the splits {config.eval_splits} of'
      f' {config.mixture_or_task_name} is prepared in {source.data_dir}. Run'
      ' dsbs_jax.prepare.'
    )
  if config.score_labels:
    progress.say('choosing the likeliest of the given labels, not generating')
  place = config.output_dir or _home(loaded.path)
  if url := buckets.url_of(place):  # lines are added to those of others
    buckets.fetch(f'{url}/{SCORES_FILE}')
  with buckets.output(place) as folder:
    folder.mkdir(parents=True, exist_ok=True)
    for split in evaluator.splits:
      line = {
        'checkpoint': buckets.shown(str(loaded.path)),
        'step': loaded.step,
        'task': evaluator.task,
        'split': split,
        'answers': 'chosen' if config.score_labels else 'generated',
      }
      if loaded.engine is not None:
        line['backend'] = loaded.facts['backend']
      if config.num_beams > 1 and not config.score_labels:
        line['num_beams'] = config.num_beams
      how = how_decoded(line)
      file = evaluator_lib.predictions_file(
        folder, evaluator.task, split, step=loaded.step, how=how
      )
      _check_inputs(file, tokens.load(evaluator.task, split, source))
      predictions = evaluator.predict(loaded.params, split)
      metrics = evaluator.score(split, predictions)
      written = evaluator.write(
        folder, loaded.step, split, predictions, how=how
      )
      _write_scores(folder, line, metrics, predictions=written)


def how_decoded(line: Mapping[str, Any]) -> str:
  """What else than a run's own evaluation a line of eval.jsonl is.

  Returns:
    Such as 'beams4' or 'ct2_int8-chosen', '' for greedy decoding in float32.
  """
  beams, used = line.get('num_beams', 1), line.get('backend')
  parts = {
    f'beams{beams}': beams != 1,
    f'{used}': used == backend.CT2_INT8,
    'chosen': line.get('answers') == 'chosen',
  }
  return '-'.join(name for name, is_so in parts.items() if is_so)


def _check_inputs(file: pathlib.Path, data: tokens.Tokens) -> None:
  """Raises UserError where a file of predictions is on other inputs."""
  if not file.is_file():
    return
  with file.open(encoding='utf-8') as lines:
    before = [json.loads(line)['input'] for line in lines]
  if before != [data.input_text(i) for i in range(len(data))]:
    raise contract.UserError(
      f'{buckets.shown(str(file))} has predictions on {len(before):,} inputs,'
      f' expected the {len(data):,} of this {data.split}: they are on other'
      ' data, or were asked otherwise, and would be lost. Give --out=FOLDER, or'
      ' remove the file.'
    )


def _write_scores(
  folder: pathlib.Path,
  line: Mapping[str, Any],
  metrics: Mapping[str, float],
  *,
  predictions: pathlib.Path,
) -> None:
  with (folder / SCORES_FILE).open('a') as file:
    file.write(json.dumps({**line, **metrics}) + '\n')
  shown = '  '.join(f'{name} {value:.2f}' for name, value in metrics.items())
  print(
    f'{line["task"]} {line["split"]}  step {line["step"]:,}  {shown}  ->'
    f' {buckets.shown(str(predictions))}'
  )


def _home(checkpoint: pathlib.Path) -> pathlib.Path:
  """The run of a checkpoint; of an exported or foreign folder, that folder."""
  is_numbered = checkpoint.name.startswith(f'{checkpoint_folders.PREFIX}_')
  return checkpoint.parent if is_numbered else checkpoint
