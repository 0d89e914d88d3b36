# SPDX-License-Identifier: Apache-2.0
"""How fast a run trains: rates, utilisation, memory, where the time goes."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from dsbs_jax.core import flops, network
from dsbs_jax.core import lora as lora_lib
from dsbs_jax.runtime import device_specs

DATA, EVALUATION, SAVE = 'data', 'evaluation', 'save'

_PAUSES = (EVALUATION, SAVE)

# View -> lengths of the inputs and targets of a step's examples.
Lengths = Mapping[str, tuple[np.ndarray, np.ndarray]]


class PhaseClock:
  """Counts work and seconds between two lines of the log.

  Steps are dispatched before they are done, so a rate is right where the steps
  were waited for: when metrics are fetched.

  Args:
    lengths: step, from 0 -> lengths of the whole batch's examples.
    model: the network, for its FLOPs.
    devices: all that train, of one kind.
    lora: what is trained in place of all parameters, for the same.
    clock: seconds.
  """

  def __init__(
    self,
    lengths: Callable[[int], Lengths],
    model: network.Config,
    devices: Sequence[jax.Device],
    *,
    lora: lora_lib.LoRA = lora_lib.OFF,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._lengths = lengths
    self._model = model
    self._lora = lora
    self._devices = list(devices)
    self._peak = device_specs.peak_flops(
      self._devices[0].device_kind, model.dtype
    )
    self._clock = clock
    self.restart()

  def restart(self) -> None:
    """Begins anew, so that compiling is not counted."""
    self._begin = self._clock()
    self._seconds = collections.Counter()
    self._counts = collections.Counter()

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Counts the seconds inside as a phase's: DATA, EVALUATION or SAVE."""
    begin = self._clock()
    try:
      yield
    finally:
      self._seconds[name] += self._clock() - begin

  def count(self, step: int) -> None:
    """Counts the work of a step, from 0."""
    self._counts['steps'] += 1
    for inputs, targets in self._lengths(step).values():
      self._counts['tokens'] += int(inputs.sum() + targets.sum())
      self._counts['flops'] += float(
        flops.train(self._model, inputs, targets, lora=self._lora).sum()
      )

  def pop(self) -> dict[str, float]:
    """Rates since the last call, {} if no step was counted; begins anew.

    Returns:
      `steps_per_second` and `tokens_per_second` (inputs and targets of all
      views, no padding) while neither evaluating nor saving,
      `data_seconds_per_step` for which the host waited for batches and sent
      them, and where the devices tell it: `mfu`, the share of their peak that
      the products of these tokens are, in percent, and `peak_memory_gib`.
    """
    pauses = sum(self._seconds[name] for name in _PAUSES)
    seconds = self._clock() - self._begin - pauses
    counts, data = self._counts, self._seconds[DATA]
    self.restart()
    if not counts['steps'] or seconds <= 0:
      return {}
    found = {
      'steps_per_second': counts['steps'] / seconds,
      'tokens_per_second': counts['tokens'] / seconds,
      'data_seconds_per_step': data / counts['steps'],
    }
    if self._peak:
      most = self._peak * len(self._devices) * seconds
      found['mfu'] = 100 * counts['flops'] / most
    memory = [
      (device.memory_stats() or {}).get('peak_bytes_in_use', 0)
      for device in self._devices
      if device.process_index == jax.process_index()
    ]
    if any(memory):
      found['peak_memory_gib'] = max(memory) / device_specs.GIB
    return found

  def pauses(self) -> dict[str, float]:
    """`evaluation_seconds` and `save_seconds` since the last `pop`."""
    return {
      f'{name}_seconds': self._seconds[name]
      for name in _PAUSES
      if self._seconds[name]
    }
