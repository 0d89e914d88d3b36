# SPDX-License-Identifier: Apache-2.0
"""Plans a training run on any hardware: memory, time and price."""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from typing import Any

import jax

from dsbs_jax import contract
from dsbs_jax.core import matmul_precision, partitioning
from dsbs_jax.core.gradients import batch_parts
from dsbs_jax.data.batching import row_shapes
from dsbs_jax.hardware import (
  batch_shapes,
  memory_options,
  plan_table,
  time_and_cost,
)
from dsbs_jax.hardware import memory as memory_lib
from dsbs_jax.runs import results
from dsbs_jax.runtime import device_specs, progress
from dsbs_jax.training import lowered_step, step_functions, train_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRequest:
  """The hardware to plan for.

  Attributes:
    mesh: data x model devices, such as '8x4'.
    device: a name of `device_specs.DEVICES`.
    batch: shapes such as 'label:32x128/16'; none takes those of prepared data
      (DATA_DIR), or typical ones.
    price_per_device_hour: in any currency; None for no price.
    utilisation: shares of the peak rate to assume, low and high; numbers or
      texts.
    remedies: whether to look for what fits if this does not.
  """

  mesh: str
  device: str
  batch: tuple[str, ...] = ()
  price_per_device_hour: float | None = None
  utilisation: Sequence[float | str] = time_and_cost.PUBLISHED_UTILISATION
  remedies: bool = True

  def __post_init__(self):
    for name in ('mesh', 'device'):
      if not getattr(self, name):
        raise contract.UserError(
          f'--{name} is not given; a plan is for --mesh=8x4 --device=v5e, say.'
        )
    partitioning.mesh_sizes(self.mesh)
    device_specs.device(self.device)
    batch_shapes.given(self.batch)
    try:
      low, high = map(float, self.utilisation)
    except ValueError:  # no numbers, or not two
      low = high = 0.0
    if not 0 < low <= high <= 1:
      raise contract.UserError(
        f'--utilisation is {",".join(map(str, self.utilisation))}, expected two'
        ' shares of the peak, low and high, such as 0.24,0.47.'
      )
    object.__setattr__(self, 'utilisation', (low, high))
    price = self.price_per_device_hour
    if price is not None and not price >= 0:
      raise contract.UserError(
        f'--price_per_device_hour is {price}, expected a number >= 0.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardwarePlan:
  """What a run needs on the hardware of a request.

  Attributes:
    request: the hardware.
    assumed: settings that decide the figures, by their macros.
    batch_from: where the shapes of the batch come from.
    views: shapes of the batch by view.
    num_params: parameters of the network.
    memory: usable bytes of a device.
    parts: bytes per device by shapes.
    compiled: what the compiler says; None where shapes rule the step out.
    fits: whether it fits.
    unsplit: parameters that a mesh axis does not divide.
    forecast: time and price.
    tried: (changes, bytes at peak, fits) of options, in the order tried.
    remedy: changes of the first that fits, () where none does or none is
      needed.
  """

  request: PlanRequest
  assumed: dict[str, Any]
  batch_from: str
  views: dict[str, row_shapes.Shape]
  num_params: int
  memory: int
  parts: memory_lib.Parts
  compiled: memory_lib.Compiled | None
  fits: bool
  unsplit: list[str]
  forecast: time_and_cost.Forecast
  tried: list[tuple[tuple[str, ...], int, bool]]
  remedy: tuple[str, ...]


def simulate(request: PlanRequest) -> None:
  """Starts JAX on CPU, with as many simulated devices as a plan may need.

  Must come before anything that starts JAX's backends. An accelerator of this
  machine, if any, stays free.
  """
  jax.config.update('jax_platforms', 'cpu')
  if device_specs.device(request.device).is_tpu:
    # JAX cannot read programs back that are for a machine that is not there.
    jax.config.update('jax_enable_compilation_cache', False)
  else:
    asked = math.prod(partitioning.mesh_sizes(request.mesh))
    jax.config.update('jax_num_cpu_devices', asked * memory_options.LARGEST)


def make(run: train_config.TrainConfig, request: PlanRequest) -> HardwarePlan:
  """Makes the plan of a training run, whose own mesh is not looked at.

  Raises:
    UserError: the mesh is no slice of the device, the compiler is not
      installed, or the batch's rows do not divide.
  """
  matmul_precision.use(run.matmul_precision)
  device = device_specs.device(request.device)
  given = batch_shapes.given(request.batch)
  shapes = functools.partial(_shapes, given)
  mesh = memory_lib.mesh_of(device, request.mesh)
  views = shapes(run, request.mesh)
  batch_parts.check_batch(
    lowered_step.batch_shapes(views, mesh),
    mesh,
    num_microbatches=run.microbatches,
  )
  asked = memory_options.Option(run, request.mesh)
  progress.say(f'compiling the train step for {request.mesh} {device.name}')
  result = memory_options.compile_option(asked, device, shapes=shapes)
  tried, remedy = [], None
  if request.remedies and not result.fits(device):
    tried, remedy = _search(asked, device, shapes)
  state = step_functions.state(run, mesh)
  return HardwarePlan(
    request=request,
    assumed=_assumed(run),
    batch_from=_origin(run, given),
    views=dict(views),
    num_params=results.num_params(run.model),
    memory=device.memory,
    parts=result.parts,
    compiled=result.compiled,
    fits=result.fits(device),
    unsplit=[
      line
      for shapes in (state.shapes.params, state.shapes.frozen)
      for line in partitioning.dropped_axes(shapes, mesh, run.sharding_rules())
    ],
    forecast=time_and_cost.forecast(
      run,
      device,
      num_devices=mesh.size,
      views=views,
      utilisation=request.utilisation,
      price_per_device_hour=request.price_per_device_hour,
    ),
    tried=tried,
    remedy=remedy.changes if remedy else (),
  )


def _search(asked, device, shapes):
  """Compiles options until one fits: (all that were tried, that one)."""
  tried = []
  for option in memory_options.options(asked, device):
    progress.say(f'it does not fit; trying {" ".join(option.changes)}')
    result = memory_options.compile_option(option, device, shapes=shapes)
    if result is None:
      continue
    peak = result.compiled.peak if result.compiled else result.parts.total
    tried.append((option.changes, peak, result.fits(device)))
    if result.fits(device):
      return tried, option
  return tried, None


def _shapes(given, run, mesh):
  if given:
    return given
  multiple = partitioning.mesh_sizes(mesh)[0] * run.microbatches
  if run.data_dir:
    return batch_shapes.of_data(run, multiple=multiple)
  return batch_shapes.typical(run, multiple=multiple)


def _origin(run, given) -> str:
  if given:
    return '--batch'
  if run.data_dir:
    return f'packing of {run.mixture_or_task_name} in {run.data_dir}'
  return 'typical: CommonsenseQA packed; --batch or DATA_DIR says otherwise'


def _assumed(run: train_config.TrainConfig) -> dict[str, Any]:
  return {
    'VOCAB_SIZE': run.model.vocab_size,
    'OPTIMIZER': run.optimizer.__name__,
    'SHARDING_RULES': run.sharding_rules.__name__,
    'ACTIVATION_DTYPE': run.model.dtype,
    'REMAT': run.model.remat,
    'SCAN_LAYERS': run.model.scan_layers,
    'MICROBATCHES': run.microbatches,
    'CHUNK_TOKENS': run.chunk_tokens,
    'BATCH_SIZE': run.batch_size,
    'TRAIN_STEPS': run.train_steps,
  } | (
    {
      'LORA_RANK': run.lora.rank,
      'LORA_TARGETS': run.lora.targets,
      'LORA_BASE_DTYPE': run.lora.base_dtype,
    }
    if run.lora.rank
    else {}
  )


def show(plan: HardwarePlan, *, as_json: bool) -> int:
  """Prints a plan; the exit status says whether the step fits."""
  if as_json:
    print(json.dumps(dataclasses.asdict(plan), indent=2))
  else:
    plan_table.show(plan)
  return 0 if plan.fits else 1
