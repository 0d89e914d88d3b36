# SPDX-License-Identifier: Apache-2.0
"""Runs of equal facts share programs in a process; no others ever do."""

import dataclasses
import functools
import inspect

import jax
import pytest

from dsbs_jax.core import lora, network, objective, optimizer, partitioning
from dsbs_jax.data.batching import layouts
from dsbs_jax.training import step_functions, train_config

# Field of a run's settings -> another value, with which it is another program.
PROGRAM = {
  'mixture_or_task_name': 'svamp_gt_single',
  'train_steps': 13,
  'batch_size': 5,
  'microbatches': 2,
  'chunk_tokens': 8,
  'learning_rate': 0.5,
  'clip_norm': None,
  'schedule': optimizer.constant,
  'optimizer': optimizer.adamw,
  'lora': lora.LoRA(rank=2),
  'sharding_rules': partitioning.fully_sharded_rules,
  'max_nonfinite_steps': 1,
}
# Those below follow; with these it is the same.
NOT_PROGRAM = {
  'model_dir': 'elsewhere',
  'data_dir': 'elsewhere',
  'vocabulary': None,
  'prefixes': 'code',
  'module': 'json',
  'lengths': {'inputs': 8, 'targets': 8},
  'initial_checkpoint_path': 'elsewhere',
  'allow_pickle': True,
  'paired': False,
  'rates': None,
  'rationale_choice': 'all',
  'layout': layouts.Bucketed,
  'skip_padding': False,
  'matmul_precision': 'bfloat16',  # JAX keeps the programs of each apart
  'seed': 1,
  'mesh': '1x1',
  'eval_period': 1,
  'eval_splits': (),
  'eval_batch_size': 7,
  'max_decode_len': 3,
  'log_period': 1,
  'keep_checkpoints': 5,
  'profile_steps': (1, 2),
}
MODEL = {
  'mlp_activations': ('relu',),
  'logits_via_embedding': True,
  'dropout_rate': 0.5,
  'dtype': 'bfloat16',
  'relpos_bias_per_layer': True,
  'remat': 'full',
  'scan_layers': True,
}
OBJECTIVE = {'alpha_schedule': 'tscl'}
OPTIMIZERS = optimizer.adamw_hf, optimizer.adamw, optimizer.adafactor
SCHEDULES = optimizer.linear_decay, optimizer.constant, optimizer.rsqrt


@pytest.fixture(scope='module')
def run(settings):
  return settings('runs/x')


def programs(run):
  mesh = partitioning.make_mesh('1x1', devices=jax.devices()[:1])
  return (
    step_functions.train_step(run, mesh),
    step_functions.init_state(run, mesh),
  )


def assert_others(run, **changes):
  """Asserts that the settings have programs of their own with each change."""
  found = [programs(run)] + [
    programs(dataclasses.replace(run, **{field: value}))
    for field, values in changes.items()
    for value in values
  ]
  for kind in zip(*found, strict=True):
    assert len(set(map(id, kind))) == len(found)


def test_runs_of_equal_facts_share_their_programs(settings):
  decay = 'optimizer.adamw_hf.weight_decay = 0.1'
  one, other = (settings(f'runs/{seed}', decay) for seed in (0, 1))
  assert one.optimizer is not other.optimizer
  for function, same in zip(programs(one), programs(other), strict=True):
    assert function is same


@pytest.mark.parametrize('field', NOT_PROGRAM)
def test_what_is_no_part_of_a_program_may_differ(run, field):
  other = dataclasses.replace(run, **{field: NOT_PROGRAM[field]})
  for function, same in zip(programs(run), programs(other), strict=True):
    assert function is same


@pytest.mark.parametrize('field', PROGRAM)
def test_another_setting_is_another_program(run, field):
  assert getattr(run, field) != PROGRAM[field]
  assert_others(run, **{field: [PROGRAM[field]]})


def test_another_model_or_objective_is_another_program(run):
  values = dataclasses.asdict(run.model)
  changed = {
    name: 2 * value if type(value) is int else MODEL[name]
    for name, value in values.items()
  }
  assert_others(
    run,
    model=[
      dataclasses.replace(run.model, **{k: v}) for k, v in changed.items()
    ],
    objective=[
      dataclasses.replace(
        run.objective, **{field.name: OBJECTIVE.get(field.name, 0.25)}
      )
      for field in dataclasses.fields(objective.Distillation)
    ],
  )


def _another(name, default):
  """Another value that the argument may have."""
  if name == 'step_offset':
    return default - 1
  return default // 2 + 1 if type(default) is int else default / 2 + 0.125


@pytest.mark.parametrize('function', OPTIMIZERS + SCHEDULES)
def test_another_argument_is_another_program(run, function):
  field = 'optimizer' if function in OPTIMIZERS else 'schedule'
  given = {'optimizer': 'clip_norm', 'schedule': 'total_steps'}[field]
  bound = [
    functools.partial(function, **{name: _another(name, argument.default)})
    for name, argument in inspect.signature(function).parameters.items()
    if argument.kind is argument.KEYWORD_ONLY and name != given
  ]
  assert bound
  run = dataclasses.replace(run, **{field: function})
  assert_others(run, **{field: bound})


def test_every_setting_is_looked_at():
  named = {field.name for field in dataclasses.fields(train_config.TrainConfig)}
  assert named == {'model', 'objective', *PROGRAM, *NOT_PROGRAM}
  assert {
    field.name
    for field in dataclasses.fields(network.T5Config)
    if field.type is not int
  } == set(MODEL)


def test_functions_of_users_are_never_shared(run):
  """They may read what gin binds elsewhere, or what a module holds."""

  def schedule(learning_rate, *, total_steps):
    return optimizer.constant(learning_rate, total_steps=total_steps)

  for own in (
    {'schedule': schedule},
    {'optimizer': lambda rate, clip_norm: optimizer.adamw(rate)},
  ):
    found = [programs(dataclasses.replace(run, **own)) for _ in range(2)]
    for function, other in zip(*found, strict=True):
      assert function is not other
