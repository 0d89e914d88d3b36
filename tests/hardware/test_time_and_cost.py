# SPDX-License-Identifier: Apache-2.0
"""FLOPs are those that XLA counts; time and price follow from them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from dsbs_jax.core import flops, lora, network, objective
from dsbs_jax.core.gradients import batch_gradient
from dsbs_jax.hardware import time_and_cost
from dsbs_jax.runtime import device_specs
from tests import models
from tests.hardware import small_run

SIZES = {
  'vocab_size': 512,
  'emb_dim': 256,
  'num_heads': 4,
  'head_dim': 64,
  'mlp_dim': 512,
}
GEMMA = network.GemmaConfig(**SIZES, num_kv_heads=2, num_layers=2)


@pytest.mark.parametrize(
  'config_',
  [
    models.t5(**SIZES, num_encoder_layers=2),
    GEMMA,
    dataclasses.replace(GEMMA, family='t5gemma2'),
  ],
  ids=['t5', 'gemma3', 't5gemma2'],
)
def test_flops_are_those_that_xla_counts(config_):
  """XLA also counts what is no product; here that is below a tenth."""
  batch = {
    name: jax.ShapeDtypeStruct((4, 48 if 'encoder' in name else 24), np.int32)
    for name in (
      'encoder_input_tokens',
      'decoder_input_tokens',
      'decoder_target_tokens',
    )
  }
  forward = jax.jit(lambda p, rows: network.apply(p, config_, rows))
  lowered = forward.lower(network.param_shapes(config_), batch)
  counted = lowered.compile().cost_analysis()['flops']
  assert flops.forward(config_, 48, 24, rows=4) == pytest.approx(
    counted, rel=0.1
  )


@pytest.mark.parametrize(
  'targets',
  [
    '.*/(query|value)/kernel',
    pytest.param('.*/kernel', marks=pytest.mark.long),
  ],
)
def test_flops_of_lora_are_those_that_xla_counts(targets):
  """One gradient per frozen product; of the first layer XLA leaves some out."""
  config = models.t5(
    vocab_size=512,
    emb_dim=256,
    num_heads=4,
    head_dim=64,
    mlp_dim=512,
    num_encoder_layers=3,
    num_decoder_layers=3,
    dropout_rate=0.0,
  )
  settings = lora.LoRA(rank=8, targets=(targets,))

  def shape(length, dtype=np.int32):
    return jax.ShapeDtypeStruct((4, length), dtype)

  rows = {
    'encoder_input_tokens': shape(48),
    **{
      f'decoder_{name}': shape(24)
      for name in ('input_tokens', 'target_tokens', 'task_ids')
    },
    'decoder_loss_weights': shape(24, np.float32),
  }

  def gradient(adapters, frozen, rows):
    return batch_gradient.batch_value_and_grad(
      adapters,
      {'mixture': rows},
      config=config,
      distillation=objective.Distillation(),
      dropout_key=jax.random.key(0),
      network_params=functools.partial(lora.attach, frozen, lora=settings),
    )

  program = models.jit(gradient).lower(
    lora.tree(config, settings).shapes(), network.param_shapes(config), rows
  )
  counted = program.compile().cost_analysis()['flops']
  found = flops.train(config, 48, 24, rows=4, lora=settings)
  print(f'{targets}: {found / counted:.3f} of what XLA counts')
  assert found == pytest.approx(counted, rel=0.1)
  assert found < 0.85 * flops.train(config, 48, 24, rows=4)


def test_step_flops_add_up_views_and_both_passes(run):
  total = time_and_cost.step_flops(run, small_run.VIEWS)
  expected = sum(
    3 * flops.forward(run.model, s.inputs, s.targets, rows=s.rows)
    for s in small_run.VIEWS.values()
  )
  assert total == expected


def test_a_forecast_follows_from_its_own_numbers(run):
  given = time_and_cost.forecast(
    run,
    device_specs.device('v5e'),
    num_devices=4,
    views=small_run.VIEWS,
    utilisation=(0.25, 0.5),
    price_per_device_hour=2.0,
  )
  slow, fast = given.step_seconds
  rate = 197e12 / 6  # of float32
  assert slow == pytest.approx(given.flops_per_step / (0.25 * 4 * rate))
  assert slow == pytest.approx(2 * fast)
  assert given.hours[0] == pytest.approx(slow * run.train_steps / 3600)
  assert given.price[0] == pytest.approx(given.hours[0] * 4 * 2.0)
  assert given.examples_per_second[1] == pytest.approx(run.batch_size / fast)
  places = 8 * (32 + 16) + 8 * (32 + 32)
  assert given.tokens_per_second[1] == pytest.approx(places / fast)


def test_float32_has_the_rate_of_its_full_precision(run):
  model = dataclasses.replace(run.model, dtype='float32')
  wide = dataclasses.replace(run, model=model)
  for name, expected in (('a100', 19.5), ('h200', 67), ('v5p', 459 / 6)):
    given = time_and_cost.forecast(
      wide, device_specs.device(name), num_devices=1, views=small_run.VIEWS
    )
    assert given.peak_tflops == pytest.approx(expected)
