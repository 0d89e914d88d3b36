# SPDX-License-Identifier: Apache-2.0
"""What to change when a train step does not fit into memory, cheapest first.

Each option keeps the changes of the options before it. Only an option whose
train step was compiled and fits is recommended.
"""

import dataclasses
from collections.abc import Callable, Iterator

from dsbs_jax.core import optimizer, partitioning
from dsbs_jax.hardware import batch_shapes, memory
from dsbs_jax.runtime import device_specs
from dsbs_jax.training import lowered_step, train_config

_MICROBATCHES = (2, 4, 8)
_LARGER = (2, 4)
# Devices of the largest option, as a multiple of those asked for.
LARGEST = max(_LARGER)

# (settings, mesh) -> shapes of the batch by view.
Shapes = Callable[[train_config.TrainConfig, str], batch_shapes.Views]


@dataclasses.dataclass(frozen=True)
class Option:
  """One way to train: settings, mesh, and what differs from the request.

  Attributes:
    run: all settings.
    mesh: such as '8x4'.
    changes: what to add to the training command.
  """

  run: train_config.TrainConfig
  mesh: str
  changes: tuple[str, ...] = ()

  def then(self, change: str, *, mesh: str | None = None, **fields) -> 'Option':
    """This option with one more change: of the mesh, or of fields of `run`."""
    run = dataclasses.replace(self.run, **fields)
    return Option(run, mesh or self.mesh, (*self.changes, change))


@dataclasses.dataclass(frozen=True)
class FitResult:
  """Whether an option fits, and what it needs.

  Attributes:
    option: the option.
    parts: bytes per device by shapes.
    compiled: None where what is always held is more than the memory.
  """

  option: Option
  parts: memory.Parts
  compiled: memory.Compiled | None

  def fits(self, device: device_specs.Device) -> bool:
    """Whether the compiled step fits into the device's memory."""
    return self.compiled is not None and self.compiled.fits(device.memory)


def options(asked: Option, device: device_specs.Device) -> Iterator[Option]:
  """The options, each on top of the ones before it, cheapest first.

  Meshes that no slice of the device has are left out.
  """
  option = asked
  if option.run.model.remat != 'full':
    model = dataclasses.replace(option.run.model, remat='full')
    option = option.then('--gin.REMAT="\'full\'"', model=model)
    yield option
  data, model = partitioning.mesh_sizes(option.mesh)
  if option.run.sharding_rules() != partitioning.fully_sharded_rules() and (
    data > 1
  ):
    option = option.then(
      '--gin.SHARDING_RULES=@partitioning.fully_sharded_rules',
      sharding_rules=partitioning.fully_sharded_rules,
    )
    yield option
  whole = option
  for number in _MICROBATCHES:
    if number > asked.run.microbatches:
      option = whole.then(f'--gin.MICROBATCHES={number}', microbatches=number)
      yield option
  if option.run.optimizer.__name__ != 'adafactor':
    option = option.then(
      '--gin_file=gin/optimizers/adafactor.gin',
      optimizer=optimizer.adafactor,
      schedule=optimizer.constant,
      clip_norm=None,
    )
    yield option
  for factor in _LARGER:
    larger = f'{data * factor}x{model}'
    if not device.is_tpu or data * factor * model in device.layouts:
      yield option.then(f'--gin.MESH="\'{larger}\'"', mesh=larger)


def compile_option(
  option: Option, device: device_specs.Device, *, shapes: Shapes
) -> FitResult | None:
  """Compiles an option, unless shapes alone rule it out.

  None where the rows of the batch that `shapes` gives do not divide.
  """
  views = shapes(option.run, option.mesh)
  mesh = memory.mesh_of(device, option.mesh)
  multiple = mesh.shape[partitioning.DATA_AXIS] * option.run.microbatches
  if any(shape.rows % multiple for shape in views.values()):
    return None
  parts = memory.parts(option.run, mesh, views)
  if parts.held > device.memory:
    return FitResult(option, parts, None)
  # Simulated devices stand for GPUs, and all accelerators join views.
  lowered = lowered_step.lower_train_step(
    option.run, mesh, views, join_views=True
  )
  return FitResult(option, parts, memory.compile_program(lowered, mesh))
