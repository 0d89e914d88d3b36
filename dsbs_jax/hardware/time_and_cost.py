# SPDX-License-Identifier: Apache-2.0
"""How long a run takes and what it costs, from its FLOPs."""

import dataclasses

from dsbs_jax.core import flops
from dsbs_jax.hardware import batch_shapes
from dsbs_jax.runtime import device_specs
from dsbs_jax.training import train_config

# Published T5 training, as a share of the bfloat16 peak: T5X on 512 GPUs and
# with FP8 25 and 24 %, T5X large on A100 36 %, nanoT5 base 35 %, NeMo 3B 38 to
# 47 %.
PUBLISHED_UTILISATION = (0.24, 0.47)

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
  """Speed and price of a run; a range is (at low, at high) utilisation.

  Attributes:
    flops_per_step: of the products of the network, forward and backward, over
      all devices; recomputation does not count.
    peak_tflops: of one device at the run's dtype.
    utilisation: share of the peak, low and high.
    step_seconds: at either.
    examples_per_second: examples (paired: pairs).
    tokens_per_second: tokens of encoder and decoder, computed padding included.
    hours: of all train steps, without evaluation and compiling.
    price: of those hours on all devices; None without a price.
  """

  flops_per_step: float
  peak_tflops: float
  utilisation: Range
  step_seconds: Range
  examples_per_second: Range
  tokens_per_second: Range
  hours: Range
  price: Range | None


def step_flops(run: train_config.TrainConfig, views: batch_shapes.Views) -> int:
  """FLOPs of one train step over all devices."""
  each = (
    flops.train(
      run.model,
      shape.inputs,
      shape.targets,
      lora=run.lora,
      rows=shape.rows,
      tokens=shape.tokens,
    )
    for shape in views.values()
  )
  return sum(each, start=0.0)


def forecast(
  run: train_config.TrainConfig,
  device: device_specs.Device,
  *,
  num_devices: int,
  views: batch_shapes.Views,
  utilisation: Range = PUBLISHED_UTILISATION,
  price_per_device_hour: float | None = None,
) -> Forecast:
  """The speed and price of a run with batches of these shapes.

  Args:
    utilisation: shares of the peak to assume, low and high.
    price_per_device_hour: in any currency; None for no price.
  """
  peak = device.peak_tflops
  if run.model.dtype == 'float32':
    peak *= device.float32_share
  total = step_flops(run, views)
  places = sum(sum(shape.tokens) for shape in views.values())

  def seconds(share):
    return total / (share * num_devices * peak * 1e12)

  def both(function):
    return tuple(function(seconds(share)) for share in utilisation)

  hours = both(lambda step: step * run.train_steps / 3600)
  price = None
  if price_per_device_hour is not None:
    price = tuple(price_per_device_hour * num_devices * h for h in hours)
  return Forecast(
    flops_per_step=total,
    peak_tflops=peak,
    utilisation=utilisation,
    step_seconds=both(lambda step: step),
    examples_per_second=both(lambda step: run.batch_size / step),
    tokens_per_second=both(lambda step: places / step),
    hours=hours,
    price=price,
  )
