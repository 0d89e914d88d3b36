# SPDX-License-Identifier: Apache-2.0
"""Calls a command as a shell would, but in this process."""

import contextlib
import dataclasses
import io
import runpy
import sys
import types
import unittest.mock

from absl import flags

from dsbs_jax.runtime import command

_FLAGS_OF = 'dsbs_jax.runtime.configuration.gin_flags'
# What holds on to that module is loaded anew with it.
_LOADED_ANEW = (_FLAGS_OF, 'dsbs_jax.inference.student_flags')
# How absl names the module of a door: by its file, or as it was imported.
_DOORS = tuple(
  form.format(name)
  for name in (
    *(f'dsbs_jax/{verb}' for verb in command.VERBS),
    'rationales/extract',
  )
  for form in ('{}.py', '{}')
) + ('rationales.extract',)

_RESTORED = set()
_DROPPED = []


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a command ended, and what it printed."""

  status: int
  stdout: str
  stderr: str


def call(module: str, *arguments: str, stdin: bytes = b'') -> Ended:
  """Runs `python -m module arguments...` in this process.

  Args:
    module: such as 'dsbs_jax.prepare'.
    *arguments: its flags.
    stdin: what it reads.

  Returns:
    How it ended; an exception that leaves the command is raised here.
  """
  out = io.TextIOWrapper(io.BytesIO(), 'utf-8', write_through=True)
  err = io.StringIO()
  status = 0
  with (
    _own_flags(),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
    unittest.mock.patch.object(sys, 'argv', [module, *arguments]),
    unittest.mock.patch.object(
      sys, 'stdin', io.TextIOWrapper(io.BytesIO(stdin))
    ),
  ):
    try:
      runpy.run_module(module, run_name='__main__', alter_sys=True)
    except SystemExit as error:
      status = error.code or 0
  return Ended(status, out.buffer.getvalue().decode(), err.getvalue())


@contextlib.contextmanager
def _own_flags():
  """Inside, no flag of a door is defined; outside, all are as before."""
  before = _take_flags()
  modules = _take_modules()
  try:
    yield
  finally:
    _take_flags()
    # absl knows modules by their id, which no other may get.
    _DROPPED.append(_take_modules())
    sys.modules.update(modules)
    for name, flag in before.items():
      flags.FLAGS[name] = flag
      _RESTORED.add(name)  # absl no longer knows whose it is
    flags.FLAGS['debug'].unparse()
    flags.FLAGS.unparse_flags()


def _take_modules() -> dict[str, types.ModuleType]:
  """Unloads the modules that define gin's flags; the doors load them anew."""
  taken = {}
  for path in _LOADED_ANEW:
    package, _, name = path.rpartition('.')
    if package in sys.modules:
      vars(sys.modules[package]).pop(name, None)
    if path in sys.modules:
      taken[path] = sys.modules.pop(path)
  return taken


def _take_flags() -> dict[str, flags.Flag]:
  """Removes what doors have defined, and returns it."""
  taken = {name: flags.FLAGS[name] for name in _RESTORED}
  _RESTORED.clear()
  for owner, owned in flags.FLAGS.flags_by_module_dict().items():
    if owner == _FLAGS_OF or owner.endswith(_DOORS):
      taken |= {flag.name: flag for flag in owned}
  for name in taken:
    delattr(flags.FLAGS, name)
  return taken
