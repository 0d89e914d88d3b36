# SPDX-License-Identifier: Apache-2.0
"""How every command starts: flags, one call, one clear error.

A command is a module with absl flags and a `main()`. `command.run(main)` adds
T5X's `--gin.NAME=VALUE` and a help page, and turns a user's mistake into one
line and exit status 2; `--debug` shows its traceback instead. Any other
exception is a bug: its traceback is shown, and the status is 1.
"""

import difflib
import importlib
import os
import runpy
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import app, flags, logging

from dsbs_jax import contract
from dsbs_jax.data.remote import buckets
from dsbs_jax.runtime import files, gin_files, help_page, terminal_text

USER_ERROR_STATUS = 2
# Verb -> the module that is run for it.
VERBS = {verb: f'dsbs_jax.{verb}' for verb in help_page.VERBS} | {
  'extract': 'rationales.extract'
}

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
        f'{argument} sets nothing, expected --gin.NAME=VALUE, such as'
        ' --gin.MODEL_DIR=runs/1.'
      )
    rewritten.append(f'--gin_bindings={name} = {value}')
  return rewritten


def run(
  main: Callable[..., int | None],
  *,
  most_arguments: int | None = 0,
  more_help: Callable[[], str] | None = None,
) -> None:
  """Parses the flags, calls `main`, exits with its status.

  Args:
    main: the command; gets what the command line holds besides flags, returns
      an exit status or None for success.
    most_arguments: how much the command line may hold besides flags; None for
      any number.
    more_help: writes the rest of the help page.
  """
  # TensorFlow, where a command needs it, only reads files: keep it quiet.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  if help_page.is_asked_for(sys.argv[1:]):
    sys.exit(_show_help(main, more_help))
  try:
    arguments = rewrite_gin_flags(gin_files.expand_flag_files(sys.argv))
  except contract.UserError as error:
    sys.exit(_report(str(error)))
  # Libraries announce every save at INFO; --verbosity=0 brings that back.
  logging.set_verbosity(logging.WARNING)

  def start(rest: Sequence[str]) -> int:
    try:
      _check_arguments(rest[1:], most_arguments)
      return main(*rest[1:]) or 0
    except (contract.UserError, OSError) as error:
      text = message(error)
      if text is None or flags.FLAGS.debug:
        raise
      return _report(text)

  app.run(start, argv=arguments, flags_parser=_parse)


def values(holders: Iterable[flags.FlagHolder]) -> dict[str, Any]:
  """Name -> value of flags, as keyword arguments."""
  return {holder.name: holder.value for holder in holders}


def _check_arguments(given: Sequence[str], most: int | None) -> None:
  """Raises where the command line holds more than flags and its arguments."""
  if most is None or len(given) <= most:
    return
  if not most:
    raise contract.UserError(
      f'{given[0]!r} is no flag, expected --NAME=VALUE only (put a value'
      ' with spaces in quotes). --help lists the flags.'
    )
  raise contract.UserError(
    f'{given[most]!r} is one argument too many, expected {most} at most and'
    ' --NAME=VALUE (put a value with spaces in quotes). --help shows examples.'
  )


def _show_help(
  main: Callable[..., int | None], more_help: Callable[[], str] | None
) -> int:
  """Prints the help page of a command; the exit status."""
  try:
    more = more_help() if more_help else ''
  except contract.UserError as error:
    return _report(str(error))
  _print(help_page.of_command(main.__globals__['__doc__'], more))
  return 0


def _print(page: str) -> None:
  """Prints a page, of which the reader may want only the head."""
  try:
    print(page, flush=True)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
  text = terminal_text.visible(buckets.shown(text))
  print(f'error: {text}', file=sys.stderr)
  return USER_ERROR_STATUS


def front() -> None:
  """The console script: `dsbs train ...` is `python -m dsbs_jax.train ...`."""
  verb = sys.argv[1] if len(sys.argv) > 1 else '--help'
  if verb in ('-h', '--help', 'help'):
    _print(help_page.FRONT)
    sys.exit(0)
  if verb == '--version':
    print(help_page.version())
    sys.exit(0)
  if verb not in VERBS:
    near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
    guess = f' Did you mean {near[0]}?' if near else ''
    sys.exit(
      _report(
        f'{verb!r} is no verb, expected one of {", ".join(VERBS)}.{guess}'
        ' usage: dsbs VERB ...; dsbs --help shows examples.'
      )
    )
  sys.argv = [f'dsbs {verb}', *sys.argv[2:]]
  # Ours, before a folder of that name in the current one.
  importlib.import_module(VERBS[verb].partition('.')[0])
  # As `python -m` does: --module may name a file of this folder.
  if not sys.flags.safe_path:
    sys.path.insert(0, os.getcwd())
  runpy.run_module(VERBS[verb], run_name='__main__', alter_sys=True)
