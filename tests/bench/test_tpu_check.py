# SPDX-License-Identifier: Apache-2.0
"""The accelerator check as a TPU runs it: one process after the other."""

import argparse
import json
import os
import subprocess
import sys
import time

import jax
import pytest

from bench import accelerator_check, check_parts, operation_times
from dsbs_jax.hardware import tpu_compiler
from dsbs_jax.runtime import device_specs
from tests.bench import test_bench

needs_compiler = pytest.mark.skipif(
  not tpu_compiler.is_installed(),
  reason="libtpu is not installed: pip install -e '.[tpu]'",
)
# Opens what one process at a time may open, as libtpu does.
_DEVICE = """
import fcntl, pathlib, sys
lock, mark = sys.argv[1:]
device = open(lock, 'w')
try:
  fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
  sys.exit('The TPU is already in use by another process')
pathlib.Path(mark).touch()
sys.stdin.readline()
print('{"seconds_per_step": 1}')
"""


class OneDevice(accelerator_check.Check):
  """A check of a device that refuses a second process."""

  def open_device(self, mark):
    lock = self.arguments.out / 'lock'
    return subprocess.Popen(
      [sys.executable, '-c', _DEVICE, str(lock), str(mark)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )

  def start_parity(self):
    mark = self.arguments.out / 'parity'
    process = self.open_device(mark)
    while not mark.exists():  # so that it is the first in every case
      time.sleep(0.01)
    return process

  def _start(self, flags, mark):
    return self.open_device(mark)


def check(folder, *, at_once):
  """What a check of three configurations and parity finds."""
  arguments = argparse.Namespace(out=folder, at_once=at_once)
  made = OneDevice(arguments, time.monotonic() + 600)
  made.run({'a': (), 'b': (), 'c': ()}, parity=True, peers=False)
  return made.found


def test_a_tpu_is_opened_by_one_process_at_a_time(tmp_path):
  found = check(tmp_path, at_once=check_parts.TPU.at_once)
  assert list(found) == ['parity', 'a', 'b', 'c']
  assert not [name for name in found if 'failed' in found[name]]


def test_processes_that_start_together_would_fail(tmp_path):
  found = check(tmp_path, at_once=check_parts.GPU.at_once)
  assert [name for name in found if 'failed' in found[name]] == ['a', 'b', 'c']


def test_what_other_devices_have_is_left_out():
  parts = check_parts.TPU.parts.values()
  texts = [text for part in parts for text in part.values()]
  flags = {flag for text in texts for flag in text.split()}
  assert '--attention=cudnn' not in flags
  assert not [flag for flag in flags if flag.startswith('--xla_flags')]
  assert not check_parts.TPU.peers


# As XLA's profiler writes it: events of a line point to what they are named.
_TRACE = """
planes {
  name: "/device:TPU:0"
  lines { id: 1 name: "XLA Modules"
    events { metadata_id: 1 duration_ps: 9000000 } }
  lines { id: 2 name: "XLA Ops"
    events { metadata_id: 2 duration_ps: 7000000 }
    events { metadata_id: 3 duration_ps: 3000000 }
    events { metadata_id: 3 duration_ps: 3000000 }
    events { metadata_id: 4 duration_ps: 1000000 } }
  event_metadata { key: 1 value { id: 1 name: "jit_step(1)" } }
  event_metadata { key: 2 value { id: 2 name: "%while.2 = (f32[]) while(x)" } }
  event_metadata { key: 3 value { id: 3
    name: "%convolution_fusion.1 = bf16[8,8]{1,0} fusion(%a, %b)" } }
  event_metadata { key: 4 value { id: 4 name: "%copy.4 = f32[8] copy(%c)" } }
}
planes { name: "/host:CPU" }
"""


def test_a_tpus_trace_is_read_operation_by_operation(tmp_path):
  path = tmp_path / 'a.xplane.pb'
  path.write_bytes(
    jax.profiler.ProfileData.text_proto_to_serialized_xspace(_TRACE)
  )
  times, kinds = operation_times.read(str(path))
  assert times == {'convolution_fusion.1': 6000, 'copy.4': 1000}
  assert kinds == {'products': 6000, 'copies': 1000}


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    ('TPU v4', 'v4'),
    ('TPU v5 lite', 'v5e'),
    ('TPU v5p', 'v5p'),
    ('TPU v5', 'v5p'),
    ('TPU v6 lite', 'v6e'),
  ],
)
def test_utilisation_is_that_of_the_chips_peak(kind, name):
  peak = device_specs.DEVICES[name].peak_tflops * 1e12
  assert device_specs.peak_flops(kind, 'bfloat16') == peak
  assert device_specs.peak_flops(kind, 'float32') == pytest.approx(peak / 6)


def run_check(folder, *flags, **environment):
  """What a check of tiny models writes, and its table."""
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'bench.accelerator_check', '--kind=tpu'),
      f'--inputs={test_bench.save_workload(folder)}',
      f'--out={folder}',
      *('--model=tiny', '--steps=1', '--product_size=128', *flags),
    ],
    cwd=test_bench.REPOSITORY,
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads((folder / 'accelerator.json').read_text())
  return found, (folder / 'accelerator.md').read_text()


@pytest.mark.long
def test_the_check_runs_on_what_is_there(tmp_path):
  """On two simulated devices: each of them trains on its own pairs."""
  found, table = run_check(
    tmp_path,
    '--parts=parity,train,decode',
    '--only',
    *('base', 'base, all chips', 'base, 32 rows'),
    XLA_FLAGS='--xla_force_host_platform_device_count=2',
    JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'cache'),
  )
  assert list(found) == ['parity', 'base', 'base, all chips', 'base, 32 rows']
  assert found['base']['chips'] == 1 and found['base, all chips']['chips'] == 2
  assert found['base, all chips']['pairs_per_step'] == 8
  # The mean over twice the same pairs; their masks are others.
  assert found['base, all chips']['loss'] == pytest.approx(
    found['base']['loss'], rel=0.02
  )
  assert found['base, 32 rows']['tokens_per_run'] == 32 * 64
  assert found['parity']['float32, views joined']['loss'] < 2e-5
  assert table.count('\n| base') == 3


@needs_compiler
@pytest.mark.long
def test_its_programs_compile_for_chips_that_are_not_there(tmp_path):
  names = 'base', 'base, all chips', 'base, 256 rows', 'base, float32'
  devices = 'v5e', 'v5p', 'v6e'
  found, _ = run_check(
    tmp_path,
    f'--compile_for={",".join(devices)}',
    '--minutes=60',
    '--only',
    *names,
  )
  assert set(found) == {f'{d}: {name}' for d in devices for name in names}
  for name, figures in found.items():
    assert figures['compiled_bytes'] > 1 << 20, (name, figures)
