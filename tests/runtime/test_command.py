# SPDX-License-Identifier: Apache-2.0
"""Commands answer bad input with one line and status 2."""

import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from dsbs_jax.runs import results
from dsbs_jax.runtime import command, gin_files
from tests.claims import doors


def _run(code, *arguments):
  return subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code), *arguments],
    capture_output=True,
    text=True,
    check=False,
  )


FAILING = """
    from dsbs_jax import contract
    from dsbs_jax.runtime import command, gin_files
    def main():
      raise contract.UserError('alpha is 2, expected a number in [0, 1].')
    command.run(main)
    """


def test_gin_flags_become_bindings():
  rewritten = command.rewrite_gin_flags(
    ['prog', "--gin.A.b='x=y'", '--gin.C=3', '--other=1']
  )
  assert rewritten == [
    'prog',
    "--gin_bindings=A.b = 'x=y'",
    '--gin_bindings=C = 3',
    '--other=1',
  ]


def test_gin_flag_without_value_is_an_error():
  with pytest.raises(ValueError, match='--gin.NAME=VALUE'):
    command.rewrite_gin_flags(['prog', '--gin.A'])


def test_user_error_is_one_line_and_status_2():
  done = _run(FAILING)
  assert done.returncode == command.USER_ERROR_STATUS
  assert done.stderr.strip() == (
    'error: alpha is 2, expected a number in [0, 1].'
  )


def test_debug_shows_the_traceback():
  done = _run(FAILING, '--debug')
  assert done.returncode == 1
  assert 'Traceback' in done.stderr


@pytest.mark.parametrize(
  ('bug', 'shown'),
  [
    ("raise ValueError('no message for users')", 'ValueError: no message for'),
    ("raise OSError('no file is named')", 'OSError: no file is named'),
    ('import jax.numpy as jnp; jnp.ones(2) + jnp.ones(3)', 'shapes'),
  ],
)
def test_a_bug_keeps_its_traceback_and_status_1(bug, shown):
  user_error = (
    "raise contract.UserError('alpha is 2, expected a number in [0, 1].')"
  )
  done = _run(FAILING.replace(user_error, bug))
  assert done.returncode == 1
  assert 'Traceback' in done.stderr and shown in done.stderr
  assert not done.stderr.startswith('error: ')


def test_a_bug_inside_a_command_keeps_its_traceback(monkeypatch):
  def broken(paths):
    return {}['a bug']

  monkeypatch.setattr(results, 'read_all', broken)
  with pytest.raises(KeyError, match='a bug'):
    doors.call('dsbs_jax.report', '/nowhere')


FRONT = 'from dsbs_jax.runtime import command; command.front()'


def test_front_refuses_unknown_verbs():
  done = _run(FRONT, 'trian')
  assert done.returncode == command.USER_ERROR_STATUS
  assert 'usage: dsbs' in done.stderr
  assert "'trian' is no verb" in done.stderr
  assert 'Did you mean train?' in done.stderr


def test_front_shows_the_whole_way_and_its_version():
  done = _run(FRONT, '--help')
  assert done.returncode == 0
  for verb in command.VERBS:
    assert f'\n  {verb} ' in done.stdout
  for example in ('eval runs/cqa', 'infer runs/cqa', 'serve runs/cqa'):
    assert f'\n  dsbs {example}' in done.stdout
  assert _run(FRONT).stdout == done.stdout
  done = _run(FRONT, '--version')
  assert done.stdout.startswith('dsbs_jax 0.') and 'jax 0.' in done.stdout


@pytest.mark.parametrize('verb', command.VERBS)
def test_every_verb_is_a_module_with_a_help_page_of_its_own(verb):
  module = command.VERBS[verb]
  ended = doors.call(module, '--help')
  assert ended.status == 0 and not ended.stderr
  assert verb in ended.stdout.split('\n')[0]
  assert '\nFlags:\n' in ended.stdout
  # absl's own flags, and those of libraries, are on no page of ours.
  for foreign in ('alsologtostderr', 'tfds_', 'xml_output_file', 'jax_'):
    assert foreign not in ended.stdout


@pytest.mark.parametrize('verb', ['plan', 'train', 'eval', 'infer', 'serve'])
def test_help_lists_every_macro_with_type_default_and_meaning(verb):
  page = doors.call(command.VERBS[verb], '--help').stdout
  engine = 'train' if verb == 'plan' else verb
  text = pathlib.Path(gin_files.find(f'{engine}.gin')).read_text()
  for macro, value in re.findall(r'^([A-Z_]+) = (.*)$', text, re.MULTILINE):
    value = '5e-05' if value == '5e-5' else value  # as Python writes it
    shown = macro if value == '%gin.REQUIRED' else f'{macro}={value}'
    (entry,) = re.findall(
      rf'^  {re.escape(shown)}(?=\s)((?:.*\n {{20,}}.*)*.*)', page, re.MULTILINE
    )
    kind, colon, meaning = ' '.join(entry.split()).partition(': ')
    assert colon and kind and meaning, macro
    assert ('[required]' in entry) == (value == '%gin.REQUIRED'), macro


def test_more_arguments_than_a_command_takes_are_named():
  ended = doors.call('dsbs_jax.eval', 'runs/a', 'runs/b')
  assert ended.status == command.USER_ERROR_STATUS
  assert "error: 'runs/b' is one argument too many" in ended.stderr


@pytest.mark.parametrize(
  'number, expected',
  [
    (13, "'/data/x': Permission denied. Change its permissions, or give"),
    (28, "'/data/x': No space left on device. Free space on that disk"),
    (30, "'/data/x': Read-only file system. Expected a file system that"),
    (5, "'/data/x': Input/output error. Check the disk"),
  ],
)
def test_a_file_error_is_told_with_its_remedy(number, expected):
  error = OSError(number, os.strerror(number), '/data/x')
  assert command.message(error).startswith(expected)
  # Without a file, or with a reason that no user can remedy, it is a bug.
  assert command.message(OSError(number, os.strerror(number))) is None
  assert command.message(OSError(22, os.strerror(22), '/data/x')) is None


def test_errors_cannot_steer_the_terminal():
  done = _run(FAILING.replace('alpha', r'\x1b[2J\u202e'))
  assert done.stderr.startswith('error: \\x1b[2J\\u202e is 2')


def test_a_wrong_flag_is_an_error_like_any_other():
  done = _run(FAILING, '--alhpa=2')
  assert done.returncode == command.USER_ERROR_STATUS
  assert done.stderr.startswith("error: Unknown command line flag 'alhpa'")
  done = _run(FAILING, 'alpha=2')
  assert done.returncode == command.USER_ERROR_STATUS
  assert "error: 'alpha=2' is no flag, expected --NAME=VALUE" in done.stderr
