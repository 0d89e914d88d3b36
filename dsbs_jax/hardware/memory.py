# SPDX-License-Identifier: Apache-2.0
"""Memory per device that a train step needs, computed without the devices.

Parameters, optimizer state and gradients follow from shapes and shardings.
Activations and workspace come from a compiler: the TPU compiler for TPUs,
XLA for simulated CPU devices in place of GPUs.
"""

import dataclasses
import math
import re
import time
from typing import Any

import jax

from dsbs_jax import contract
from dsbs_jax.core import partitioning
from dsbs_jax.hardware import batch_shapes, tpu_compiler
from dsbs_jax.runtime import device_specs
from dsbs_jax.training import lowered_step, step_functions, train_config

_NEEDED = re.compile(r'(?:Used |temporaries \()(\d+(?:\.\d+)?)([KMGT])')
# Compiles in half the time, with the same memory; the program is never run.
QUICK = {'xla_backend_optimization_level': 0}
_UNITS = {'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
  """Bytes on the fullest device that follow from shapes alone.

  Attributes:
    params: parameters, float32; with LoRA the frozen ones and the adapters.
    optimizer: optimizer state.
    gradients: one gradient per trained parameter, sharded as that is.
    batch: one batch.
  """

  params: int
  optimizer: int
  gradients: int
  batch: int

  @property
  def held(self) -> int:
    """What is there at every moment: all but the gradients."""
    return self.params + self.optimizer + self.batch

  @property
  def total(self) -> int:
    """All of them."""
    return self.held + self.gradients


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
  """What a compiler says of a program.

  Attributes:
    peak: bytes per device at the worst moment, arguments included; the TPU
      compiler counts a donated argument twice, as argument and as output.
    allocated: bytes per device of arguments, outputs and all temporaries,
      whether or not they live at one time.
    seconds: what compiling took.
    compiler: whose figures these are.
    complete: False where the compiler gave up, as the program needs more
      memory than the device has; `peak` is then its last count.
  """

  peak: int
  allocated: int
  seconds: float
  compiler: str
  complete: bool = True

  def fits(self, memory: int) -> bool:
    """Whether a device with so many bytes takes the program."""
    # The TPU compiler knows its device's memory, and packs into it.
    return self.complete and (self.compiler == 'tpu' or self.peak <= memory)


def parts(
  run: train_config.TrainConfig,
  mesh: jax.sharding.Mesh,
  views: batch_shapes.Views,
) -> Parts:
  """The bytes per device that follow from shapes; `views` are of all rows."""
  state = step_functions.state(run, mesh).like
  batch = lowered_step.batch_shapes(views, mesh, microbatches=run.microbatches)
  trained = bytes_per_device(state.params)
  return Parts(
    params=bytes_per_device(state.frozen) + trained,
    optimizer=bytes_per_device(state.opt_state),
    gradients=trained,
    batch=bytes_per_device(batch),
  )


def bytes_per_device(tree: Any) -> int:
  """Bytes of a tree of arrays, or of shapes with shardings, on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def mesh_of(device: device_specs.Device, shape: str) -> jax.sharding.Mesh:
  """A mesh, such as '8x4', of TPU chips to compile for, or of simulated CPUs.

  Raises:
    UserError: the shape is none, no TPU slice has this number of chips, or
      JAX already runs with fewer CPU devices.
  """
  num_devices = math.prod(partitioning.mesh_sizes(shape))
  if device.is_tpu:
    found = tpu_compiler.devices(device, num_devices)
  else:
    found = jax.devices('cpu')[:num_devices]
    if len(found) < num_devices:
      raise contract.UserError(
        f'--mesh={shape} needs {num_devices} simulated devices, but JAX was'
        f' started with {len(found)}. Set'
        f' JAX_NUM_CPU_DEVICES={num_devices} before it starts.'
      )
  return partitioning.make_mesh(shape, devices=found)


def compile_program(
  lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh
) -> Compiled:
  """Compiles a lowered program and returns the memory it needs.

  A program that is too large for a TPU is a result, not an error. The mesh is
  that of the program; it decides the compiler.

  Raises:
    JaxRuntimeError: the compiler fails for another reason than memory.
  """
  platform = mesh.devices.flat[0].platform
  options = QUICK if platform == 'cpu' else None
  started = time.monotonic()
  complete = True
  try:
    memory = lowered.compile(compiler_options=options).memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    held += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    # CPU programs allocate all temporaries at once.
    peak = memory.peak_memory_in_bytes if platform == 'tpu' else held
  except jax.errors.JaxRuntimeError as error:
    needed = _NEEDED.search(str(error))
    if 'RESOURCE_EXHAUSTED' not in str(error) or needed is None:
      raise
    complete = False
    peak = held = int(float(needed[1]) * _UNITS[needed[2]])
  return Compiled(
    peak=peak,
    allocated=held,
    seconds=time.monotonic() - started,
    compiler=platform,
    complete=complete,
  )
