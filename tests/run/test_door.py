# SPDX-License-Identifier: Apache-2.0
"""Commands answer bad input with one line and status 2."""

import subprocess
import sys
import textwrap

import pytest

from dsbs_jax.run import door


def _run(code, *arguments):
  return subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code), *arguments],
    capture_output=True,
    text=True,
    check=False,
  )


FAILING = """
    from dsbs_jax.run import door
    def main():
      raise ValueError('alpha is 2, expected a number in [0, 1].')
    door.run(main)
    """


def test_gin_flags_become_bindings():
  rewritten = door.rewrite_gin_flags(
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
    door.rewrite_gin_flags(['prog', '--gin.A'])


def test_user_error_is_one_line_and_status_2():
  done = _run(FAILING)
  assert done.returncode == door.USER_ERROR_STATUS
  assert done.stderr.strip() == (
    'error: alpha is 2, expected a number in [0, 1].'
  )


def test_debug_shows_the_traceback():
  done = _run(FAILING, '--debug')
  assert done.returncode == 1
  assert 'Traceback' in done.stderr


def test_a_bug_keeps_its_traceback():
  done = _run(FAILING.replace('ValueError', 'ZeroDivisionError'))
  assert done.returncode == 1
  assert 'ZeroDivisionError' in done.stderr


def test_front_refuses_unknown_verbs():
  done = _run('from dsbs_jax.run import door; door.front()', 'trian')
  assert done.returncode == door.USER_ERROR_STATUS
  assert 'usage: dsbs' in done.stderr
