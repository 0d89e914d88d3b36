# SPDX-License-Identifier: Apache-2.0
"""The model's programs that are measured: a training step, random parameters."""

import math
from collections.abc import Callable, Mapping, Sequence

import jax

from dsbs_jax import contract
from dsbs_jax.core import network, objective, optimizer, partitioning, steps

NUM_STEPS = 10_000  # of the paper's runs


def train_step(
  config: network.T5Config,
  *,
  make_optimizer: Callable = optimizer.adamw_hf,
  chunk_tokens: int = 0,
  mesh: str | None = None,
  join_views: bool = False,
  devices: Sequence[jax.Device] | None = None,
  compiler_options: Mapping[str, str] | None = None,
) -> tuple[Callable, Callable]:
  """() -> the first state, and (state, batch) -> (state, metrics), jitted.

  Args:
    config: of the model.
    make_optimizer: learning rates -> optimizer.
    chunk_tokens: tokens whose logits are computed at once; 0 for all.
    mesh: data x model devices; None: all are for data.
    join_views: whether labels and rationales pass through it together.
    devices: that compute; None: as many as the mesh has, or one.
    compiler_options: of the step, such as XLA's choice of libraries.
  """
  transformation = make_optimizer(
    optimizer.linear_decay(total_steps=NUM_STEPS), clip_norm=1.0
  )

  def init():
    return steps.init_state(jax.random.key(0), config, transformation)

  if devices is None:
    devices = jax.devices()[: math.prod(partitioning.mesh_sizes(mesh or '1x1'))]
  rules = partitioning.standard_rules()
  grid = partitioning.make_mesh(mesh, devices=devices)
  state = partitioning.state_shardings(jax.eval_shape(init), grid, rules)
  step = steps.make_train_step(
    config,
    objective.Distillation(),
    transformation,
    run_key=jax.random.key(1),
    num_shards=partitioning.gradient_shards(grid, rules),
    chunk_tokens=chunk_tokens,
    join_views=join_views,
  )
  return jax.jit(init, out_shardings=state), jax.jit(
    step,
    in_shardings=(state, partitioning.batch_sharding(grid)),
    out_shardings=(state, None),
    donate_argnums=0,
    compiler_options=compiler_options,
  )


def endless_params(config: network.T5Config) -> dict:
  """Random parameters with which decoding goes on to its limit.

  The logits of padding and end are 0, which some other token always exceeds.
  """

  def make():
    params = network.init(jax.random.key(0), config)
    logits = params['decoder']['logits_dense']
    kernel = logits['kernel'].at[:, : contract.EOS_ID + 1].set(0.0)
    params['decoder']['logits_dense'] = logits | {'kernel': kernel}
    return params

  return jax.jit(make)()
