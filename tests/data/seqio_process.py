# SPDX-License-Identifier: Apache-2.0
"""Code in fresh processes where seqio is there: its import takes four seconds.

They are forked from one process that has imported seqio and nothing of ours.
"""

import functools
import json
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_FORKS = """
import json, os, sys
import seqio
for line in sys.stdin:
  call = json.loads(line)
  child = os.fork()
  if not child:
    printed = os.open(call['printed'], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(printed, 1)
    errors = os.open(call['printed'] + '.errors', os.O_CREAT | os.O_WRONLY)
    os.dup2(errors, 2)
    os.chdir(call['cwd'])
    os.environ.clear()
    os.environ.update(call['env'])
    exec(call['code'], {'__name__': '__main__'})
    sys.exit()
  print(os.waitpid(child, 0)[1], flush=True)
"""


@functools.cache
def _forks():
  # It ends with this process, which holds the other end of its stdin.
  return subprocess.Popen(
    [sys.executable, '-c', _FORKS],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    env={'PATH': '', 'PYTHONPATH': str(REPOSITORY)},
    text=True,
  )


def run(code, printed, *, cwd=REPOSITORY, **env):
  """What the code prints; a process that fails is a failed assertion.

  Args:
    code: Python; imports also find what lies in `cwd`.
    printed: the path of a file to print to; that of errors ends in .errors.
    cwd: where it runs.
    env: all that is in its environment.
  """
  process = _forks()
  call = {'code': code, 'printed': str(printed), 'cwd': str(cwd), 'env': env}
  process.stdin.write(json.dumps(call) + '\n')
  process.stdin.flush()
  status = process.stdout.readline().strip()
  assert status == '0', pathlib.Path(f'{printed}.errors').read_text()
  return pathlib.Path(printed).read_text()
