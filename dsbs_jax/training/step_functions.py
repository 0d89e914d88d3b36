# SPDX-License-Identifier: Apache-2.0
"""The jitted step functions of a run, and the shapes of its state.

Training calls them with arrays. The planner lowers and compiles the same ones
from shapes (`lowered_step`), for machines that are not there. `run` is always
all settings, and `mesh` the devices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Self

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dsbs_jax.core import lora as lora_lib
from dsbs_jax.core import network, objective, partitioning, platform, steps
from dsbs_jax.runs import checkpoints
from dsbs_jax.training import train_config

# Of this many kinds of runs, programs are kept: a sweep's methods.
_MAX_SHARED = 8


@dataclasses.dataclass(frozen=True)
class State:
  """An abstract train state: a tree of shapes and a tree of shardings."""

  shapes: Any
  shardings: Any

  @property
  def like(self) -> Any:
    """Shapes that carry their shardings."""
    return checkpoints.shapes_with_shardings(self.shapes, self.shardings)


@dataclasses.dataclass(frozen=True)
class _Call:
  """A function with the arguments that are bound to it, comparable by value."""

  function: Callable[..., Any]
  arguments: tuple[tuple[str, Any], ...] = ()

  @classmethod
  def of(cls, function: Callable[..., Any]) -> Self:
    """Of a function, or of the partial that `gin_config` makes."""
    if isinstance(function, functools.partial) and not function.args:
      return cls(function.func, tuple(sorted(function.keywords.items())))
    return cls(function)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    return self.function(*args, **dict(self.arguments) | kwargs)

  @property
  def is_ours(self) -> bool:
    """Whether equal arguments always mean the same.

    core/ is pure. A function of a user's may read what gin or a module binds.
    """
    plain = bool | int | float | str | None
    package = getattr(self.function, '__module__', '').rpartition('.')[0]
    ours = package == steps.__package__
    return ours and all(isinstance(x, plain) for _, x in self.arguments)


@dataclasses.dataclass(frozen=True)
class _Facts:
  """All that a run's programs depend on, apart from their arguments.

  The programs below are made of these alone, and shared by runs whose facts
  are equal, so no run can get another run's program.
  """

  model: network.Config
  objective: objective.Distillation
  lora: lora_lib.LoRA
  optimizer: _Call
  schedule: _Call
  learning_rate: float
  total_steps: int
  clip_norm: float | None
  num_microbatches: int
  chunk_tokens: int
  num_pairs: int
  skip_nonfinite: bool
  join_views: bool
  rules: partitioning.Rules
  mesh: Mesh
  platform: str | None  # None: lowering decides

  def transformation(self) -> optax.GradientTransformation:
    """The optimizer with its schedule."""
    rate = self.schedule(self.learning_rate, total_steps=self.total_steps)
    return self.optimizer(rate, clip_norm=self.clip_norm)


def state(run: train_config.TrainConfig, mesh: Mesh) -> State:
  """The run's abstract train state on a mesh; computes nothing."""
  return _shared(_state, _facts(run, mesh))


def init_state(
  run: train_config.TrainConfig, mesh: Mesh
) -> Callable[[jax.Array], steps.TrainState]:
  """The jitted start of a run: typed key -> state of random parameters."""
  return _shared(_init_state, _facts(run, mesh))


def train_step(
  run: train_config.TrainConfig,
  mesh: Mesh,
  *,
  join_views: bool | None = None,
  any_platform: bool = False,
) -> jax.stages.Wrapped:
  """The training step: (state, batch, key data) -> (state, metrics).

  The run's key is an argument, so that runs which differ in their seed alone
  share one compiled program: the same function, in one process.

  Args:
    join_views: as in `batch_gradient.batch_value_and_grad`; None: as the mesh's
      platform does.
    any_platform: whether it may be lowered for other platforms than the mesh's.
  """
  facts = _facts(run, mesh, join_views)
  if any_platform:
    facts = dataclasses.replace(facts, platform=None)
  return _shared(_train_step, facts)


def network_params(
  run: train_config.TrainConfig,
  mesh: Mesh,
  train_state: steps.TrainState,
  *,
  dtype: str = 'float32',
) -> Any:
  """The parameters of a plain network, as readers of a checkpoint get them.

  Args:
    train_state: its params, or with LoRA its frozen kernels and their
      adapters, merged, which shares all other arrays with the state.
    dtype: of merged kernels.
  """
  if train_state.frozen is None:
    return train_state.params
  merge = _shared(_merge, _facts(run, mesh))
  adapters, frozen = train_state.params, train_state.frozen
  kernels = lora_lib.base_kernels(frozen, adapters)
  return lora_lib.replace(frozen, merge(kernels, adapters, dtype))


def _facts(
  run: train_config.TrainConfig, mesh: Mesh, join_views: bool | None = None
) -> _Facts:
  of_mesh = mesh.devices.flat[0].platform
  if join_views is None:
    # Accelerators gain from larger products and from fewer programs to launch.
    # A CPU gains nothing, and loses memory.
    join_views = of_mesh != 'cpu'
  return _Facts(
    model=run.model,
    objective=train_config.objective_of(run),
    lora=run.lora,
    optimizer=_Call.of(run.optimizer),
    schedule=_Call.of(run.schedule),
    learning_rate=run.learning_rate,
    total_steps=run.train_steps,
    clip_norm=run.clip_norm,
    num_microbatches=run.microbatches,
    chunk_tokens=run.chunk_tokens,
    num_pairs=run.batch_size,
    skip_nonfinite=bool(run.max_nonfinite_steps),
    join_views=join_views,
    rules=run.sharding_rules(),
    mesh=mesh,
    platform=of_mesh,
  )


def _shared(make: Callable[[_Facts], Any], facts: _Facts) -> Any:
  """What is made of these facts: the one that there is, or a new one."""
  if facts.optimizer.is_ours and facts.schedule.is_ours:
    return make(facts)
  return make.__wrapped__(facts)


def _start(facts: _Facts) -> Callable[[jax.Array], steps.TrainState]:
  transformation = facts.transformation()
  return lambda key: steps.init_state(
    key, facts.model, transformation, lora=facts.lora
  )


@functools.lru_cache(_MAX_SHARED)
def _state(facts: _Facts) -> State:
  shapes = jax.eval_shape(_start(facts), jax.random.key(0))
  shardings = partitioning.state_shardings(shapes, facts.mesh, facts.rules)
  return State(shapes, shardings)


@functools.lru_cache(_MAX_SHARED)
def _init_state(facts: _Facts) -> jax.stages.Wrapped:
  shardings = _shared(_state, facts).shardings
  return jax.jit(_start(facts), out_shardings=shardings)


@functools.lru_cache(_MAX_SHARED)
def _merge(facts: _Facts) -> jax.stages.Wrapped:
  shardings = _shared(_state, facts).shardings
  return jax.jit(
    lambda kernels, adapters, dtype: lora_lib.merged_kernels(
      kernels, adapters, facts.lora, dtype=dtype
    ),
    static_argnums=2,
    out_shardings=lora_lib.base_kernels(shardings.frozen, shardings.params),
  )


@functools.lru_cache(_MAX_SHARED)
def _train_step(facts: _Facts) -> jax.stages.Wrapped:
  transformation = facts.transformation()

  def step_fn(state, batch, key_data):
    train_step = steps.make_train_step(
      facts.model,
      facts.objective,
      transformation,
      run_key=jax.random.wrap_key_data(key_data),
      num_microbatches=facts.num_microbatches,
      num_shards=partitioning.gradient_shards(facts.mesh, facts.rules),
      chunk_tokens=facts.chunk_tokens,
      num_pairs=facts.num_pairs,
      join_views=facts.join_views,
      lora=facts.lora,
      total_steps=facts.total_steps,
    )
    if facts.skip_nonfinite:
      train_step = steps.skip_updates(train_step)
    if facts.platform:
      train_step = platform.traced_for(facts.platform)(train_step)
    return train_step(state, batch)

  shardings = _shared(_state, facts).shardings
  replicated = NamedSharding(facts.mesh, PartitionSpec())
  return jax.jit(
    step_fn,
    in_shardings=(
      shardings,
      partitioning.batch_sharding(facts.mesh),
      replicated,
    ),
    out_shardings=(shardings, replicated),
    donate_argnums=0,
  )
