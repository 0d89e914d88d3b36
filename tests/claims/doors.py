# SPDX-License-Identifier: Apache-2.0
"""Calls a command as a shell would, but in this process."""

import contextlib
import dataclasses
import importlib
import io
import runpy
import sys
import unittest.mock

from absl import flags

_FLAGS_OF = 'dsbs_jax.run.gin_flags'


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
  out, err = io.StringIO(), io.StringIO()
  status = 0
  with (
    _own_flags(module),
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
  return Ended(status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _own_flags(module: str):
  """Inside, the flags of a door may be defined; they are gone after it."""
  importlib.import_module('dsbs_jax.run.door')  # its own flag stays
  if _FLAGS_OF in sys.modules:
    importlib.reload(sys.modules[_FLAGS_OF])
  try:
    yield
  finally:
    defined = flags.FLAGS.flags_by_module_dict()
    for owner in (module, _FLAGS_OF):
      for name in {flag.name for flag in defined.get(owner, ())}:
        if name in flags.FLAGS:
          delattr(flags.FLAGS, name)
    flags.FLAGS['debug'].unparse()
    flags.FLAGS.unparse_flags()
