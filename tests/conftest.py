# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test folder uses."""

import atexit
import gc
import os
import pathlib
import signal
import sys

import hypothesis
import pytest

_LONG_SECONDS = 3600
_SLOW = {'claims', 'core', 'hardware', 'runtime', 'training'}
pytest_plugins = ['tests.run_folders']
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# In a shell's background SIGINT is ignored, and tests would wait for it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As in the Makefile, for processes that tests start.
os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
sys.dont_write_bytecode = False
# Before jax is imported: CPU unless told otherwise, programs compiled in a sixth
# of the time (their code is slower, and tests' programs are small) and kept, the
# smallest too: there are thousands.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
  ' --xla_cpu_use_fusion_emitters=false'
  ' --xla_cpu_parallel_codegen_split_count=1',
)
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR', str(REPOSITORY / '.cache' / 'compiled')
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
# Models that are converted for CTranslate2 stay in the checkout.
os.environ.setdefault('XDG_CACHE_HOME', str(REPOSITORY / '.cache' / 'user'))
# The same examples everywhere, however long they take; other ones: `make fuzz`.
hypothesis.settings.register_profile(
  'same',
  deadline=None,
  derandomize=True,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile('same')


def pytest_collection_modifyitems(items):
  # Two workers take files in this order: short ones last.
  items.sort(key=lambda item: not _SLOW & set(item.path.parts))
  for item in items:
    if item.get_closest_marker('long'):
      item.add_marker(pytest.mark.timeout(_LONG_SECONDS))


def pytest_collection_finish():
  """The garbage collector no longer looks through what was imported.

  And seldom through the rest, which is a tenth of the time that tracing takes.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)


def pytest_unconfigure():
  """A worker that has reported all ends: no thousand programs are taken apart.

  xdist waits for that, and interrupts workers that take long. Handlers of exit
  run last registered first, so this one leaves out all others.
  """
  if 'PYTEST_XDIST_WORKER' in os.environ:
    gc.freeze()
    atexit.register(os._exit, 0)


@pytest.fixture(scope='session')
def shared_dir() -> pathlib.Path:
  """The folder with reference data, which is never part of the repository."""
  folder = pathlib.Path(
    os.environ.get('DSBS_SHARED', REPOSITORY.parent / 'shared')
  )
  if not (folder / 'golden').is_dir():
    pytest.skip(f'reference data is not at {folder} (set DSBS_SHARED)')
  return folder


@pytest.fixture(
  params=['t5_1_1', 't5_1_0', 'shared/hf_t5_tiny', 'shared/hf_t5_tied']
)
def recorded_model(request) -> pathlib.Path:
  """A folder of transformers, with what it computed in forward.npz."""
  source, _, name = request.param.rpartition('/')
  if source == 'shared':
    shared_dir = request.getfixturevalue('shared_dir')
    return shared_dir / 'golden' / 'original' / name
  return REPOSITORY / 'tests' / 'recordings' / name
