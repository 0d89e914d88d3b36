# SPDX-License-Identifier: Apache-2.0
"""The train step lowered from shapes, for machines that need not be there."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dsbs_jax.core import partitioning
from dsbs_jax.core.gradients import batch_parts
from dsbs_jax.data.batching import row_shapes
from dsbs_jax.training import step_functions, train_config

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


def batch_shapes(
  views: Mapping[str, row_shapes.Shape],
  mesh: Mesh,
  *,
  pair_ids: bool = False,
  microbatches: int = 1,
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
  """A packed batch by shapes: view -> row group, see contract.py.

  Args:
    views: the shape of each view's row group.
    mesh: rows are split over its data axis.
    pair_ids: whether the batch tells which rows belong to which pair.
    microbatches: how many parts of a batch are computed one after another.
  """
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
  *,
  join_views: bool | None = None,
) -> jax.stages.Lowered:
  """The train step for a mesh whose devices need not be there.

  Args:
    run: all settings.
    mesh: of real, simulated or compile-only devices.
    views: the shape of each view's row group, packed.
    join_views: as in `step_functions.train_step`.

  Raises:
    UserError: rows do not divide over the mesh and the microbatches.
  """
  tied = train_config.objective_of(run).needs_pair_ids
  batch = batch_shapes(
    views, mesh, pair_ids=tied, microbatches=run.microbatches
  )
  batch_parts.check_batch(batch, mesh, num_microbatches=run.microbatches)
  described = step_functions.state(run, mesh)
  key_data = jax.eval_shape(
    lambda: jax.random.key_data(jax.random.key(run.seed))
  )
  step = step_functions.train_step(run, mesh, join_views=join_views)
  return step.lower(described.like, batch, key_data)
