# SPDX-License-Identifier: Apache-2.0
"""How every command starts: flags, one call, one clear error.

A command is a module with absl flags and a `main()`. `command.run(main)` adds
T5X's `--gin.NAME=VALUE` and turns a user's mistake into one line and exit
status 2; `--debug` shows its traceback instead. Any other exception is a bug:
its traceback is shown, and the status is 1.
"""

import os
import runpy
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from dsbs_jax import contract
from dsbs_jax.runtime import files, terminal_text

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
flags.DEFINE_bool('debug', False, 'Show the traceback of a user error.')


def rewrite_gin_flags(arguments: Sequence[str]) -> list[str]:
  """Turns `--gin.NAME=VALUE` into `--gin_bindings=NAME = VALUE`, for absl.

  Raises:
    UserError: a `--gin.` flag without `=`.
  """
  rewritten = []
  for argument in arguments:
    if not argument.startswith(_GIN_FLAG):
      rewritten.append(argument)
      continue
    name, equals, value = argument.removeprefix(_GIN_FLAG).partition('=')
    if not equals:
      raise contract.UserError(
        f'{argument} sets nothing, expected --gin.NAME=VALUE (strings need'
        ' quotes of their own: --gin.MODEL_DIR="\'/runs/1\'").'
      )
    rewritten.append(f'--gin_bindings={name} = {value}')
  return rewritten


def run(
  main: Callable[[], int | None], *, takes_arguments: bool = False
) -> None:
  """Parses the flags, calls `main`, exits with its status.

  Args:
    main: the command; returns an exit status or None for success.
    takes_arguments: whether the command line may hold more than flags.
  """
  # TensorFlow, where a command needs it, only reads files: keep it quiet.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  try:
    arguments = rewrite_gin_flags(sys.argv)
  except contract.UserError as error:
    sys.exit(_report(str(error)))
  # Libraries announce every save at INFO; --verbosity=0 brings that back.
  logging.set_verbosity(logging.WARNING)

  def start(rest: Sequence[str]) -> int:
    try:
      if rest[1:] and not takes_arguments:
        raise contract.UserError(
          f'{rest[1]!r} is no flag, expected --NAME=VALUE only (put a value'
          ' with spaces in quotes). --help lists the flags.'
        )
      return main() or 0
    except (contract.UserError, OSError) as error:
      text = message(error)
      if text is None or flags.FLAGS.debug:
        raise
      return _report(text)

  app.run(start, argv=arguments, flags_parser=_parse)


def _parse(arguments: Sequence[str]) -> list[str]:
  """Parses flags; a wrong one is an error of the user's like any other."""
  try:
    return flags.FLAGS(arguments)
  except flags.Error as error:
    message = ' '.join(str(error).removeprefix('ERROR:: ').split()).rstrip(
      '. ?'
    )
    sys.exit(_report(f'{message}. --help lists the flags.'))


def message(error: Exception) -> str | None:
  """What a command prints of an error in place of its traceback.

  None where it is neither a UserError nor a file error that the user can
  remedy, but a bug.
  """
  if isinstance(error, contract.UserError):
    return str(error)
  if isinstance(error, BrokenPipeError):
    return 'the program that reads the output has closed it.'
  if isinstance(error, OSError) and error.filename is not None:
    return files.explain(os.fsdecode(error.filename), error)
  return None


def _report(text: str) -> int:
  print(f'error: {terminal_text.visible(text)}', file=sys.stderr)
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
