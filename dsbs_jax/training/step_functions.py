# SPDX-License-Identifier: Apache-2.0
"""The jitted step functions of a run, and the shapes of their arguments.

Training calls them with arrays. The planner lowers and compiles the same ones
from shapes, for machines that are not there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsbs_jax.core import partitioning, steps
from dsbs_jax.data.batching import row_shapes
from dsbs_jax.runs import checkpoints
from dsbs_jax.training import train_config

_PACKED_ROWS = {
  'encoder_input_tokens': jnp.int32,
  'decoder_input_tokens': jnp.int32,
  'decoder_target_tokens': jnp.int32,
  'decoder_loss_weights': jnp.float32,
  'decoder_task_ids': jnp.int32,
  'encoder_segment_ids': jnp.int32,
  'encoder_positions': jnp.int32,
  'decoder_segment_ids': jnp.int32,
  'decoder_positions': jnp.int32,
}


@dataclasses.dataclass(frozen=True)
class State:
  """An abstract train state: a tree of shapes and a tree of shardings."""

  shapes: Any
  shardings: Any

  @property
  def like(self) -> Any:
    """Shapes that carry their shardings."""
    return checkpoints.shapes_with_shardings(self.shapes, self.shardings)


def state(run: train_config.TrainConfig, mesh: Mesh) -> State:
  """The run's abstract train state on a mesh; computes nothing."""
  transformation = run.transformation()
  shapes = jax.eval_shape(
    lambda key: steps.init_state(key, run.model, transformation),
    jax.random.key(0),
  )
  shardings = partitioning.state_shardings(shapes, mesh, run.sharding_rules())
  return State(shapes, shardings)


def train_step(
  run: train_config.TrainConfig, shardings: Any, mesh: Mesh
) -> jax.stages.Wrapped:
  """The training step: (state, batch, key data) -> (state, metrics).

  The run's key is an argument, so that runs which differ in their seed alone
  share one compiled program.

  Args:
    run: all settings.
    shardings: of the train state.
    mesh: the devices.
  """
  transformation = run.transformation()

  def step_fn(state, batch, key_data):
    train_step = steps.make_train_step(
      run.model,
      train_config.objective_of(run),
      transformation,
      run_key=jax.random.wrap_key_data(key_data),
      num_microbatches=run.microbatches,
      num_shards=partitioning.gradient_shards(mesh, run.sharding_rules()),
      chunk_tokens=run.chunk_tokens,
      num_pairs=run.batch_size,
    )
    if run.max_nonfinite_steps:
      train_step = steps.skip_updates(train_step)
    return train_step(state, batch)

  replicated = NamedSharding(mesh, PartitionSpec())
  return jax.jit(
    step_fn,
    in_shardings=(shardings, partitioning.batch_sharding(mesh), replicated),
    out_shardings=(shardings, replicated),
    donate_argnums=0,
  )


def batch_shapes(
  views: Mapping[str, row_shapes.Shape],
  mesh: Mesh,
  *,
  pair_ids: bool = False,
  microbatches: int = 1,
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
  """A packed batch by shapes: view -> row group, see contract.py."""
  sharding = partitioning.batch_sharding(mesh)
  num_cells = mesh.shape[partitioning.DATA_AXIS] * microbatches
  names = dict(_PACKED_ROWS)
  if pair_ids:
    names['decoder_pair_ids'] = jnp.int32

  def group(shape):
    lengths = {'encoder': shape.inputs, 'decoder': shape.targets}
    found = {
      name: ((shape.rows, lengths[name.split('_')[0]]), dtype)
      for name, dtype in names.items()
    }
    if shape.input_slots:
      for stack, slots in zip(lengths, shape.tokens, strict=True):
        cells = num_cells, slots // num_cells
        found[f'{stack}_token_index'] = cells, jnp.int32
    return {
      name: jax.ShapeDtypeStruct(*described, sharding=sharding)
      for name, described in found.items()
    }

  return {view: group(shape) for view, shape in views.items()}


def lower_train_step(
  run: train_config.TrainConfig,
  mesh: Mesh,
  views: Mapping[str, row_shapes.Shape],
) -> jax.stages.Lowered:
  """The train step for a mesh whose devices need not be there.

  Args:
    run: all settings.
    mesh: of real, simulated or compile-only devices.
    views: the shape of each view's row group, packed.

  Returns:
    What `.compile()` turns into a program for the mesh's devices.

  Raises:
    UserError: rows do not divide over the mesh and the microbatches.
  """
  tied = bool(train_config.objective_of(run).mi_weight)
  batch = batch_shapes(
    views, mesh, pair_ids=tied, microbatches=run.microbatches
  )
  partitioning.check_batch(batch, mesh, num_microbatches=run.microbatches)
  described = state(run, mesh)
  key_data = jax.eval_shape(
    lambda: jax.random.key_data(jax.random.key(run.seed))
  )
  step = train_step(run, described.shardings, mesh)
  return step.lower(described.like, batch, key_data)
