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

# What each room may import of the project, by the longest matching prefix.
ALLOWED = {
  'dsbs_jax.contract': (),
  'dsbs_jax.core': ('dsbs_jax.contract', 'dsbs_jax.core'),
  'dsbs_jax.data': ('dsbs_jax.contract', 'dsbs_jax.data'),
  'dsbs_jax.interop': (
    'dsbs_jax.contract',
    'dsbs_jax.core',
    # T5X trains on the built-in loader's batches.
    'dsbs_jax.data',
    'dsbs_jax.interop',
  ),
  'dsbs_jax.run': (
    'dsbs_jax.contract',
    'dsbs_jax.core',
    'dsbs_jax.data',
    'dsbs_jax.interop',
    'dsbs_jax.run',
  ),
  'dsbs_jax': ('dsbs_jax.run', 'dsbs_jax.interop', 'dsbs_jax.data'),
  'tasks': ('dsbs_jax.contract', 'dsbs_jax.data', 'tasks'),
  'rationales': (
    'dsbs_jax.contract',
    'dsbs_jax.data',
    'dsbs_jax.run.door',
    'rationales',
    'tasks',
  ),
}
CORE_PACKAGES = {'jax', 'flax', 'optax', 'numpy', 'dsbs_jax'}
# The files of the data room that may import TensorFlow.
TENSORFLOW_FILES = {
  'store',
  'preprocessors',
  'providers',
  'foreign',
  'features',
}
TENSORFLOW = {'tensorflow', 'tensorflow_datasets', 'tensorflow_text', 'seqio'}


def _files() -> list[pathlib.Path]:
  return sorted(
    path
    for package in PACKAGES
    for path in (REPOSITORY / package).rglob('*.py')
  )


def _imports(path: pathlib.Path, *, top_level: bool = False) -> set[str]:
  tree = ast.parse(path.read_text())
  nodes = tree.body if top_level else ast.walk(tree)
  names = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def _module(path: pathlib.Path) -> str:
  return '.'.join(path.relative_to(REPOSITORY).with_suffix('').parts)


def _within(name: str, prefixes: tuple[str, ...]) -> bool:
  return any(name == p or name.startswith(p + '.') for p in prefixes)


@pytest.mark.parametrize('path', _files(), ids=_module)
def test_imports_follow_the_directions(path):
  module = _module(path)
  room = max((room for room in ALLOWED if _within(module, (room,))), key=len)
  ours = {name for name in _imports(path) if _within(name, PACKAGES)}
  wrong = {name for name in ours if not _within(name, ALLOWED[room])}
  assert not wrong, f'{module} is in {room}, which may not import {wrong}'
  doors = {name for name in ours if name.removeprefix('dsbs_jax.') in DOORS}
  assert not doors, f'{module} imports the doors {doors}'


@pytest.mark.parametrize(
  'path', sorted((REPOSITORY / 'dsbs_jax/core').glob('*.py')), ids=_module
)
def test_core_imports_numerics_only(path):
  roots = {name.split('.')[0] for name in _imports(path)}
  assert roots - set(sys.stdlib_module_names) <= CORE_PACKAGES


@pytest.mark.parametrize(
  'path', sorted((REPOSITORY / 'dsbs_jax/data').glob('*.py')), ids=_module
)
def test_tensorflow_only_where_marked(path):
  roots = {name.split('.')[0] for name in _imports(path, top_level=True)}
  assert path.stem in TENSORFLOW_FILES or not roots & TENSORFLOW


def test_gin_is_imported_in_one_file_only():
  users = {
    _module(path)
    for path in _files()
    if 'gin' in {name.split('.')[0] for name in _imports(path)}
  }
  assert users <= {'dsbs_jax.run.config'}


def test_gin_folder_holds_no_python():
  assert not list((REPOSITORY / 'gin').rglob('*.py'))


@pytest.mark.parametrize('path', _files(), ids=_module)
def test_doors_are_short(path):
  if path.parent.name == 'dsbs_jax' and path.stem in DOORS:
    assert len(path.read_text().splitlines()) <= 60


def test_core_loads_no_tensorflow():
  modules = ', '.join(
    _module(path)
    for path in sorted((REPOSITORY / 'dsbs_jax/core').glob('*.py'))
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
