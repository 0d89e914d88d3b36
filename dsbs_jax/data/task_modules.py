# SPDX-License-Identifier: Apache-2.0
"""Imports modules that register benchmarks: ours in tasks/, and a user's own.

A user's module is named by its path or as Python imports it. No file is run
twice in a process, whichever way it is named: a benchmark registers once.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import os
import pathlib
import pkgutil
import sys
import traceback
import types
from collections.abc import Iterator

from dsbs_jax import contract

_FOLDER = pathlib.Path(__file__).resolve().parents[2] / 'tasks'
_NAME = 'tasks'
# The name of our package where `tasks` is a folder of the user's.
_OTHER_NAME = 'dsbs_jax_tasks'


def import_ours(name: str = '') -> None:
  """Imports the module of this name in our tasks/, or all of them."""
  package = _our_package()
  if package is None:
    return
  modules = [m.name for m in pkgutil.iter_modules(package.__path__)]
  for module in [name] if name in modules else modules:
    importlib.import_module(f'{package.__name__}.{module}')


def load(module: str) -> None:
  """Imports a user's own module.

  Args:
    module: 'folder/mine.py', or 'mine' as Python imports it. Folders of the
      current folder and of sys.path are looked into even where another package
      has their name, such as ours for tasks.mine.

  Raises:
    UserError: there is no such module, or it cannot be imported.
  """
  if is_path(module):
    _load_file(pathlib.Path(module).expanduser().absolute(), module)
    return
  try:
    with _explained(module):
      spec = importlib.util.find_spec(module)
  except ModuleNotFoundError:
    spec = None
  if spec is not None:
    if not spec.origin or not _is_loaded(pathlib.Path(spec.origin)):
      with _explained(module, spec.origin):
        importlib.import_module(module)
    return
  parts = pathlib.Path(*module.split('.')).with_suffix('.py')
  files = (pathlib.Path(folder, parts) for folder in ('', *sys.path))
  file = next((file for file in files if file.is_file()), None)
  if file is None:
    raise contract.UserError(
      f'--module={module} cannot be imported (there is no {parts}). Run in the'
      ' folder that holds it, add that folder to PYTHONPATH, or give its path:'
      f' --module=FOLDER/{parts}.'
    )
  _load_file(file.absolute(), module)


def is_path(module: str) -> bool:
  """Whether a module is named by its path."""
  return module.endswith('.py') or os.sep in module


def absolute(module: str) -> str:
  """The name of a module that is good in another folder, too, for a path."""
  return (
    os.path.abspath(os.path.expanduser(module)) if is_path(module) else module
  )


def _our_package() -> types.ModuleType | None:
  """Our tasks/, under a name that no folder of the user's has."""
  if not (_FOLDER / '__init__.py').is_file():
    return None
  try:
    found = importlib.util.find_spec(_NAME)
  except ValueError:  # something without a spec has the name
    found = None
  places = (found and found.submodule_search_locations) or ()
  if any(pathlib.Path(place).resolve() == _FOLDER for place in places):
    return importlib.import_module(_NAME)
  if _OTHER_NAME not in sys.modules:
    _run(_FOLDER / '__init__.py', _OTHER_NAME, folders=[str(_FOLDER)])
  return sys.modules[_OTHER_NAME]


def _load_file(file: pathlib.Path, module: str) -> None:
  """Runs a user's file once; `module` is what the user called it."""
  if file.suffix != '.py' or not file.is_file():
    raise contract.UserError(
      f'--module={module} is not there: {file} is no file, expected a Python'
      ' file that registers a benchmark (see tasks/README.md).'
    )
  if file.resolve().parent == _FOLDER:
    import_ours(file.stem)
    return
  if _is_loaded(file):
    return
  folder = str(file.parent)
  if folder not in sys.path:  # for what lies beside it; nothing is hidden
    sys.path.append(folder)
  with _explained(module, str(file)):
    _run(file, _free_name(file))


def _run(
  file: pathlib.Path, name: str, *, folders: list[str] | None = None
) -> None:
  spec = importlib.util.spec_from_file_location(
    name, file, submodule_search_locations=folders
  )
  sys.modules[name] = module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[name]
    raise


def _free_name(file: pathlib.Path) -> str:
  """The name by which others import a file, else one that nothing has."""
  name = file.stem
  if name.isidentifier() and name not in sys.modules:
    found = importlib.util.find_spec(name)
    if found and found.origin and file.samefile(found.origin):
      return name
  digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]
  return f'dsbs_jax_module_{digest}'


def _is_loaded(file: pathlib.Path) -> bool:
  """Whether a module of this process was made from the file."""
  file = file.resolve()
  loaded = [getattr(m, '__file__', None) for m in list(sys.modules.values())]
  return any(
    pathlib.Path(place).name == file.name
    and pathlib.Path(place).resolve() == file
    for place in loaded
    if isinstance(place, str)
  )


@contextlib.contextmanager
def _explained(module: str, file: str | None = None) -> Iterator[None]:
  """Says where in the user's file an error is; a missing module goes on."""
  try:
    yield
  except Exception as error:
    missing = getattr(error, 'name', None)
    if (
      isinstance(error, ModuleNotFoundError)
      and missing
      and f'{module}.'.startswith(f'{missing}.')
    ):
      raise
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    if isinstance(error, SyntaxError) and error.lineno:
      file, lines = error.filename, [error.lineno]
    place = f' ({file}, line {lines[-1]})' if lines else f' ({file})'
    reason = str(error)
    if not isinstance(error, contract.UserError):
      text = getattr(error, 'msg', None) or error
      reason = f'{type(error).__name__}: {text}. --debug shows its traceback.'
    raise contract.UserError(f'--module={module}{place}: {reason}') from error
