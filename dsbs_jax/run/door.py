# SPDX-License-Identifier: Apache-2.0
"""How every command starts: flags, one call, one clear error.

A door is a module with absl flags and a `main()`; `door.run(main)` gives it
T5X's habit `--gin.NAME=VALUE`, and turns an error of the user's into one line
and exit status 2. `--debug` shows the traceback instead.
"""

import os
import runpy
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

USER_ERROR_STATUS = 2
VERBS = (
  'prepare',
  'show',
  'train',
  'eval',
  'infer',
  'serve',
  'export',
  'plan',
  'sweep',
  'report',
)

_GIN_FLAG = '--gin.'
# What bad input raises. A bug raises something else and keeps its traceback.
_USER_ERRORS = (ValueError, OSError)

flags.DEFINE_bool('debug', False, 'Show the traceback of a user error.')


def rewrite_gin_flags(arguments: Sequence[str]) -> list[str]:
  """Turns `--gin.NAME=VALUE` into `--gin_bindings=NAME = VALUE`.

  Args:
    arguments: the command line, program name first.

  Returns:
    The command line that absl understands.

  Raises:
    ValueError: a `--gin.` flag without `=`.
  """
  rewritten = []
  for argument in arguments:
    if not argument.startswith(_GIN_FLAG):
      rewritten.append(argument)
      continue
    name, equals, value = argument.removeprefix(_GIN_FLAG).partition('=')
    if not equals:
      raise ValueError(
        f'{argument} sets nothing, expected --gin.NAME=VALUE (strings need'
        ' quotes of their own: --gin.MODEL_DIR="\'/runs/1\'").'
      )
    rewritten.append(f'--gin_bindings={name} = {value}')
  return rewritten


def run(main: Callable[[], int | None]) -> None:
  """Parses the flags, calls `main`, exits with its status.

  Args:
    main: the command; returns an exit status or None for success.
  """
  # TensorFlow, where a command needs it, only reads files: keep it quiet.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  try:
    arguments = rewrite_gin_flags(sys.argv)
  except ValueError as error:
    sys.exit(_report(error))
  # Libraries announce every save at INFO; --verbosity=0 brings that back.
  logging.set_verbosity(logging.WARNING)
  app.run(lambda _: _guarded(main), argv=arguments)


def _guarded(main: Callable[[], int | None]) -> int:
  try:
    return main() or 0
  except _USER_ERRORS as error:
    if flags.FLAGS.debug:
      raise
    return _report(error)


def _report(error: BaseException) -> int:
  print(f'error: {error}', file=sys.stderr)
  return USER_ERROR_STATUS


def front() -> None:
  """The console script: `dsbs train ...` is `python -m dsbs_jax.train ...`."""
  verb = sys.argv[1] if len(sys.argv) > 1 else ''
  if verb not in VERBS:
    print(f'usage: dsbs {{{",".join(VERBS)}}} [flags]', file=sys.stderr)
    sys.exit(0 if verb in ('-h', '--help') else USER_ERROR_STATUS)
  sys.argv = [f'dsbs {verb}', *sys.argv[2:]]
  # As `python -m` does: --module may name a file of this folder.
  if not sys.flags.safe_path:
    sys.path.insert(0, os.getcwd())
  runpy.run_module(f'dsbs_jax.{verb}', run_name='__main__', alter_sys=True)
