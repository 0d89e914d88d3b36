# SPDX-License-Identifier: Apache-2.0
"""The walk of tasks/README.md works, word for word."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

from tests.data import seqio_process

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r'^```(\w+) ?(\S*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def test_the_walk_of_the_readme(tmp_path):
  page = (REPOSITORY / 'tasks' / 'README.md').read_text()
  commands = []
  for language, name, content in _BLOCK.findall(page):
    if language == 'shell':
      commands += content.splitlines()
    elif name:
      path = tmp_path / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(content)
  assert (tmp_path / 'mine.py').is_file()
  # seqio, and so T5X, knows every name that the page promises.
  promised = sorted(set(re.findall(r'`(mine_\w+)`', page)))
  assert len(promised) == 11
  names = (
    'import mine, seqio\n'
    f'for name in {promised!r}:\n  seqio.get_mixture_or_task(name)\n'
    'print("registered")\n'
  )
  found = seqio_process.run(names, tmp_path / 'printed', cwd=tmp_path)
  assert found.strip().endswith('registered')
  environment = {
    **os.environ,
    'PYTHONPATH': str(REPOSITORY),
    'COLUMNS': '120',
  }
  printed = []
  for command in commands:
    program, *arguments = shlex.split(command)
    if program == 'dsbs':
      arguments = ['-m', f'dsbs_jax.{arguments[0]}', *arguments[1:]]
    else:
      assert program == 'python', command
    done = subprocess.run(
      [sys.executable, *arguments],
      capture_output=True,
      text=True,
      cwd=tmp_path,
      env=environment,
    )
    assert done.returncode == 0, f'{command}\n{done.stderr}'
    printed.append(done.stdout)
  described, first, answered, prepared, shown = printed
  assert re.search(r'rows +│ +6 │ +4 │ +1 │ +1 │', described)
  assert '[label] Is a bat a bird?' in first
  assert re.search(r'parsed +│ +5 │', answered)
  assert re.search(r'LLM label accuracy % +│ +83.33 │', answered)
  assert re.search(r'no_marker +│ +1 │', prepared)
  assert re.search(r'LLM label accuracy % +│ +75.00 │', prepared)
  assert '[label] Ann has 2 pens and buys 3.' in shown
  assert 'rationale' in shown
