# SPDX-License-Identifier: Apache-2.0
"""Rates count what was computed while neither evaluating nor saving."""

import types

import jax
import numpy as np
import pytest

from dsbs_jax.core import flops, network
from dsbs_jax.runtime import device_specs
from dsbs_jax.training import phase_clock

MODEL = network.T5Config(
  vocab_size=128,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_encoder_layers=2,
  num_decoder_layers=1,
  dtype='bfloat16',
)
LENGTHS = {
  'label': (np.array([7, 5]), np.array([2, 3])),
  'rationale': (np.array([7, 5]), np.array([20, 10])),
}


class Now:
  """Seconds that a test passes."""

  value = 100.0

  def __call__(self):
    return self.value


def device(kind, peak_bytes=None):
  stats = None if peak_bytes is None else {'peak_bytes_in_use': peak_bytes}
  return types.SimpleNamespace(
    device_kind=kind,
    memory_stats=lambda: stats,
    process_index=jax.process_index(),
  )


def clock_of(devices, now):
  return phase_clock.PhaseClock(lambda step: LENGTHS, MODEL, devices, clock=now)


def test_pauses_are_not_training():
  now = Now()
  clock = clock_of([device('cpu')], now)
  for step in range(4):
    with clock.phase(phase_clock.DATA):
      now.value += 0.5
    clock.count(step)
    now.value += 1.5
  with clock.phase(phase_clock.SAVE):
    now.value += 7.0
  with clock.phase(phase_clock.EVALUATION):
    now.value += 90.0
  assert clock.pauses() == {'save_seconds': 7.0, 'evaluation_seconds': 90.0}
  assert clock.pop() == {
    'steps_per_second': 0.5,
    'tokens_per_second': 59 / 2,
    'data_seconds_per_step': 0.5,
  }
  assert clock.pop() == {} and clock.pauses() == {}


def test_what_passed_before_a_restart_is_not_counted():
  now = Now()
  clock = clock_of([device('cpu')], now)
  clock.count(0)
  now.value += 3600.0  # compiling
  clock.restart()
  assert clock.pop() == {}
  clock.count(1)
  now.value += 2.0
  assert clock.pop()['steps_per_second'] == 0.5


def test_utilisation_is_of_all_devices_and_without_padding():
  now = Now()
  devices = [device('NVIDIA H100 80GB HBM3', n << 30) for n in (3, 5)]
  clock = clock_of(devices, now)
  clock.count(0)
  now.value += 1e-6
  found = clock.pop()
  work = sum(
    flops.train(MODEL, int(source), int(target))
    for lengths in LENGTHS.values()
    for source, target in zip(*lengths, strict=True)
  )
  assert found['mfu'] == pytest.approx(100 * work / (2 * 989e12 * 1e-6), 1e-6)
  assert found['peak_memory_gib'] == 5


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    ('TPU v4', 'v4'),
    ('TPU v5 lite', 'v5e'),
    ('TPU v5', 'v5p'),
    ('TPU v6 lite', 'v6e'),
    ('NVIDIA A100-SXM4-80GB', 'a100'),
    ('NVIDIA H200', 'h200'),
  ],
)
def test_devices_are_known_by_the_kind_that_jax_names(kind, name):
  known = device_specs.DEVICES[name]
  assert device_specs.peak_flops(kind, 'bfloat16') == known.peak_tflops * 1e12
  assert device_specs.peak_flops(kind, 'float32') == pytest.approx(
    known.peak_tflops * 1e12 * known.float32_share
  )


@pytest.mark.parametrize(
  'kind',
  [
    'cpu',
    'NVIDIA H100 PCIe',
    'NVIDIA H200 NVL',
    'NVIDIA A100-SXM4-40GB MIG 1g.5gb',
    'TPU v4 lite',
  ],
)
def test_other_devices_have_no_utilisation(kind):
  assert device_specs.peak_flops(kind, 'float32') is None
