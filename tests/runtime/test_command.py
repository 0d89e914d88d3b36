# SPDX-License-Identifier: Apache-2.0
"""Commands answer bad input with one line and status 2."""

import os
import subprocess
import sys
import textwrap

import pytest

from dsbs_jax.runs import results
from dsbs_jax.runtime import command
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
    from dsbs_jax.runtime import command
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


def test_front_refuses_unknown_verbs():
  done = _run('from dsbs_jax.runtime import command; command.front()', 'trian')
  assert done.returncode == command.USER_ERROR_STATUS
  assert 'usage: dsbs' in done.stderr


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
