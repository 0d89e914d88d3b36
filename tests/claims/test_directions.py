# SPDX-License-Identifier: Apache-2.0
"""The rooms import in one direction, and the numerics stay light."""

import ast
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ('dsbs_jax', 'tasks', 'rationales')
DOORS = {
  path.stem
  for path in (REPOSITORY / 'dsbs_jax').glob('*.py')
  if path.stem not in ('__init__', 'contract')
}

# A room imports from itself and from rooms above it.
ORDER = (
  'dsbs_jax.contract',
  'dsbs_jax.core',
  'dsbs_jax.data',
  'dsbs_jax.interop',
  'dsbs_jax.runtime',
  'dsbs_jax.runs',
  'dsbs_jax.inference',
  'dsbs_jax.training',
  'dsbs_jax.serving',
  'dsbs_jax.exporting',
  'dsbs_jax.hardware',
  'dsbs_jax.reporting',
  'dsbs_jax.preparing',
  'dsbs_jax.experiments',
)
_BELOW_RATIONALES = ('dsbs_jax.contract', 'dsbs_jax.data', 'dsbs_jax.runtime')
# Rooms, and rooms within them, that are asked for less than what lies above.
NARROW = {
  'dsbs_jax.core': ('dsbs_jax.contract', 'dsbs_jax.core'),
  'dsbs_jax.core.layers': (
    'dsbs_jax.contract',
    'dsbs_jax.core.layers',
    'dsbs_jax.core.matmul_precision',
    'dsbs_jax.core.platform',
  ),
  'dsbs_jax.core.losses': (
    'dsbs_jax.contract',
    'dsbs_jax.core.losses',
    'dsbs_jax.core.objective',
    'dsbs_jax.core.matmul_precision',
    'dsbs_jax.core.platform',
  ),
  'dsbs_jax.core.gradients': (
    'dsbs_jax.contract',
    'dsbs_jax.core.gradients',
    'dsbs_jax.core.layers',
    'dsbs_jax.core.losses',
    'dsbs_jax.core.network',
    'dsbs_jax.core.objective',
    'dsbs_jax.core.partitioning',
  ),
  'dsbs_jax.data': ('dsbs_jax.contract', 'dsbs_jax.data'),
  'dsbs_jax.data.remote': ('dsbs_jax.contract', 'dsbs_jax.data.remote'),
  'dsbs_jax.data.vocabulary': (
    'dsbs_jax.contract',
    'dsbs_jax.data.remote',
    'dsbs_jax.data.vocabulary',
  ),
  'dsbs_jax.runtime': (
    'dsbs_jax.contract',
    'dsbs_jax.data',
    'dsbs_jax.runtime',
  ),
  'tasks': ('dsbs_jax.contract', 'dsbs_jax.data', 'tasks'),
  'rationales.record': (*_BELOW_RATIONALES, 'rationales.record'),
  'rationales.client': (
    *_BELOW_RATIONALES,
    'rationales.record',
    'rationales.client',
  ),
  'rationales': (*_BELOW_RATIONALES, 'rationales', 'tasks'),
}
CORE_PACKAGES = {'jax', 'flax', 'optax', 'numpy', 'dsbs_jax'}
# Files of the data room that may import TensorFlow, in functions, besides the
# whole folder seqio_tasks.
TENSORFLOW_FILES = {
  'dsbs_jax.data.prepared.store',
  'dsbs_jax.data.prepared.dataset_writer',
}
TENSORFLOW = {'tensorflow', 'tensorflow_datasets', 'tensorflow_text', 'seqio'}
# Other people's frameworks are met in one room only.
FOREIGN = {'t5x', 'transformers', 'torch'}


def _files() -> list[pathlib.Path]:
  return sorted(
    path
    for package in PACKAGES
    for path in (REPOSITORY / package).rglob('*.py')
  )


def _imports(path: pathlib.Path) -> set[str]:
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def _module(path: pathlib.Path) -> str:
  return '.'.join(path.relative_to(REPOSITORY).with_suffix('').parts)


def _within(name: str, prefixes: tuple[str, ...]) -> bool:
  return any(name == p or name.startswith(p + '.') for p in prefixes)


def _room(module: str) -> str:
  rooms = [r for r in (*ORDER, *NARROW) if _within(module, (r,))]
  return max(rooms, key=len, default='door')


def _allowed(room: str) -> tuple[str, ...]:
  if room in NARROW:
    return NARROW[room]
  return ORDER[: ORDER.index(room) + 1] if room in ORDER else ORDER


@pytest.mark.parametrize('path', _files(), ids=_module)
def test_imports_follow_the_order_of_the_rooms(path):
  module = _module(path)
  allowed = _allowed(_room(module))
  ours = {name for name in _imports(path) if _within(name, PACKAGES)}
  wrong = {name for name in ours if not _within(name, allowed)}
  assert not wrong, f'{module} may not import {wrong}'
  doors = {name for name in ours if name.removeprefix('dsbs_jax.') in DOORS}
  assert not doors, f'{module} imports the doors {doors}'


def test_every_folder_is_a_room_of_the_order():
  folders = {
    f'dsbs_jax.{path.name}'
    for path in (REPOSITORY / 'dsbs_jax').iterdir()
    if (path / '__init__.py').exists()
  }
  assert folders == set(ORDER) - {'dsbs_jax.contract'}


def test_no_two_modules_import_each_other():
  modules = {_module(path): path for path in _files()}
  graph = {
    module: {
      found
      for name in _imports(path)
      for found in (name, name.rpartition('.')[0])  # a module, or what it has
      if found in modules
    }
    - {module}
    for module, path in modules.items()
  }
  while leaves := {name for name, uses in graph.items() if not uses}:
    graph = {
      name: uses - leaves for name, uses in graph.items() if name not in leaves
    }
  assert not graph, f'in a cycle, or importing one: {sorted(graph)}'


@pytest.mark.parametrize('path', _files(), ids=_module)
def test_other_frameworks_are_met_in_interop_only(path):
  roots = {name.split('.')[0] for name in _imports(path)}
  assert _room(_module(path)) == 'dsbs_jax.interop' or not roots & FOREIGN


@pytest.mark.parametrize(
  'path', sorted((REPOSITORY / 'dsbs_jax/core').rglob('*.py')), ids=_module
)
def test_core_imports_numerics_only(path):
  roots = {name.split('.')[0] for name in _imports(path)}
  assert roots - set(sys.stdlib_module_names) <= CORE_PACKAGES


@pytest.mark.parametrize(
  'path', sorted((REPOSITORY / 'dsbs_jax/data').rglob('*.py')), ids=_module
)
def test_tensorflow_only_where_marked(path):
  module = _module(path)
  roots = {name.split('.')[0] for name in _imports(path)}
  assert (
    _within(module, ('dsbs_jax.data.seqio_tasks',))
    or module in TENSORFLOW_FILES
    or not roots & TENSORFLOW
  )


def test_gin_is_imported_in_one_file_only():
  users = {
    _module(path)
    for path in _files()
    if 'gin' in {name.split('.')[0] for name in _imports(path)}
  }
  assert users <= {'dsbs_jax.runtime.configuration.gin_config'}


def test_gin_folder_holds_no_python():
  assert not list((REPOSITORY / 'gin').rglob('*.py'))


def test_core_loads_no_tensorflow():
  modules = ', '.join(
    _module(path)
    for path in sorted((REPOSITORY / 'dsbs_jax/core').rglob('*.py'))
    if path.stem != '__init__'
  )
  code = (
    f'import sys, {modules}; print([m for m in ("tensorflow", "seqio",'
    ' "tensorflow_datasets", "gin") if m in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    cwd=REPOSITORY,
    check=True,
  )
  assert done.stdout.strip() == '[]'
