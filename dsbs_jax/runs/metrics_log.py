# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run: metrics.jsonl, TensorBoard and the progress line.

`metrics.jsonl` holds what was computed and no rates, so that a resumed run
writes the same file as one that was never interrupted. Rates and seconds go to
`timing.jsonl`, TensorBoard and the progress line.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from dsbs_jax import contract
from dsbs_jax.runs import tensorboard
from dsbs_jax.runtime import files, progress

METRICS_FILE = 'metrics.jsonl'
TIMING_FILE = 'timing.jsonl'
# What follows a schedule.
_OF_THE_LAST_STEP = {'learning_rate', 'alpha'}


class MetricsLog:
  """Writes the metrics of one run.

  Args:
    model_dir: the run's folder.
    train_steps: the step at which the run ends, for the ETA.
    start_step: the step at which this process starts; later lines and points,
      written by a process that died, are dropped.
    writes: whether this process writes: the first one alone.
  """

  def __init__(
    self,
    model_dir: str | pathlib.Path,
    *,
    train_steps: int,
    start_step: int = 0,
    writes: bool = True,
  ):
    self._folder = pathlib.Path(model_dir)
    self._train_steps = train_steps
    self._events = None
    if writes:
      self._folder.mkdir(parents=True, exist_ok=True)
      lines = _drop_lines_after(self._folder / METRICS_FILE, start_step)
      _drop_lines_after(self._folder / TIMING_FILE, start_step)
      with files.writing(self._folder):
        self._events = tensorboard.EventFile(
          self._folder, start_step=start_step, points=_points(lines)
        )

  def config(self, text: str | None) -> None:
    """Writes the gin config of the run to config.gin, as T5X does."""
    if self._events is not None and text is not None:
      files.replace_text(self._folder / 'config.gin', text)

  def train(
    self,
    step: int,
    scalars: Mapping[str, float],
    rates: Mapping[str, float] | None = None,
  ) -> None:
    """Writes the means of the steps since the last call, by `summarise`.

    Rates are those of `phase_clock.PhaseClock.pop`; none where it compiled.
    """
    self._write(step, 'train', scalars)
    self.timings(step, rates)
    speed = ''
    if rates:
      rate = rates['steps_per_second']
      eta = progress.duration((self._train_steps - step) / rate)
      speed = (
        f'  {rate:.2f} steps/s  {rates["tokens_per_second"]:,.0f} tokens/s'
      )
      if 'mfu' in rates:
        speed += f'  MFU {rates["mfu"]:.1f} %'
      speed += f'  ETA {eta}'
    losses = {name: f'{name}/loss' for name in contract.TASK_IDS}
    shown = '  '.join(
      f'{name} {scalars[key]:.4f}'
      for name, key in ({'loss': 'loss'} | losses).items()
      if key in scalars
    )
    self.say(f'step {step:,}/{self._train_steps:,}  {shown}{speed}')

  def evaluation(
    self, step: int, split: str, scalars: Mapping[str, float]
  ) -> None:
    """Writes the metrics of one evaluated split."""
    self._write(step, split, scalars)
    shown = '  '.join(f'{key} {value:.2f}' for key, value in scalars.items())
    self.say(f'step {step:,}  {split}: {shown}')

  def timings(self, step: int, seconds: Mapping[str, float] | None) -> None:
    """Writes rates and seconds, which no two runs have in common."""
    if self._events is None or not seconds:
      return
    self._append(TIMING_FILE, {'step': step, **seconds})
    prefix = f'train/{tensorboard.RATES}'
    with files.writing(self._folder):
      self._events.scalars(step, {prefix + k: v for k, v in seconds.items()})

  def say(self, text: str) -> None:
    """Prints a line on the first process."""
    if self._events is not None:
      progress.say(text)

  def close(self) -> None:
    """Flushes the TensorBoard file."""
    if self._events is not None:
      with files.writing(self._folder):
        self._events.close()

  def _write(self, step: int, split: str, scalars: Mapping[str, float]) -> None:
    """To metrics.jsonl and TensorBoard what was computed."""
    if self._events is None:
      return
    self._append(METRICS_FILE, {'step': step, 'split': split, **scalars})
    tagged = {f'{split}/{key}': value for key, value in scalars.items()}
    with files.writing(self._folder):
      self._events.scalars(step, tagged)

  def _append(self, name: str, entry: Mapping[str, Any]) -> None:
    path = self._folder / name
    with files.writing(path), path.open('a') as file:
      file.write(json.dumps(entry) + '\n')


def summarise(metrics: list[Mapping[str, jax.Array]]) -> dict[str, float]:
  """Turns sums and counts of several steps into means.

  Args:
    metrics: one dict per step, as the train step returns them: `<term>/tokens`
      with `<term>/<quantity>_sum` or `<term>/correct`, and plain scalars.

  Returns:
    `<term>/loss` and `<term>/accuracy` per target token over all the steps,
    `<term>/tokens` and plain scalars as means per step; `learning_rate` and
    `alpha` as they were in the last step. A term without tokens is left out.
  """
  host = [
    {key: float(value) for key, value in m.items()}
    for m in jax.device_get(metrics)
  ]
  totals = {
    key: np.sum([m[key] for m in host], dtype=np.float64) for key in host[0]
  }
  means = {}
  for key, total in totals.items():
    term, _, quantity = key.rpartition('/')
    tokens = totals.get(f'{term}/tokens')
    if tokens == 0:
      continue
    if tokens is None or quantity == 'tokens':
      means[key] = float(total / len(host))
    else:
      name = 'accuracy' if quantity == 'correct' else quantity
      means[f'{term}/{name.removesuffix("_sum")}'] = float(total / tokens)
  for name in means.keys() & _OF_THE_LAST_STEP:
    means[name] = host[-1][name]
  return means


def _drop_lines_after(path: pathlib.Path, step: int) -> list[dict[str, Any]]:
  """Removes later lines and a torn last one; returns those that stay."""
  if not path.exists():
    return []
  content, kept, entries = path.read_text(), [], []
  for line in content.splitlines(keepends=True):
    try:
      entry = json.loads(line)
    except json.JSONDecodeError:
      continue
    if entry['step'] <= step:
      kept.append(line if line.endswith('\n') else line + '\n')
      entries.append(entry)
  if ''.join(kept) != content:
    files.replace_text(path, ''.join(kept))
  return entries


def _points(lines: Iterable[Mapping[str, Any]]) -> tensorboard.Points:
  """The values of lines by step and tag."""
  return {
    (line['step'], f'{line["split"]}/{key}'): value
    for line in lines
    for key, value in line.items()
    if key not in ('step', 'split')
  }
