# SPDX-License-Identifier: Apache-2.0
"""The first signal is a request; SIGINT after it ends the process at once."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import signal, time
from dsbs_jax.runtime import signals
stop = signals.StopRequest()
print('ready', flush=True)
while not stop.requested():
  time.sleep(0.01)
print(stop.name, flush=True)
while True:
  signal.pause()  # finishing the step
"""


@pytest.mark.parametrize('first', [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigint_exits_at_once(first):
  process = subprocess.Popen(
    [sys.executable, '-c', PROGRAM], stdout=subprocess.PIPE, text=True
  )
  try:
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(first)
    assert process.stdout.readline() == f'{first.name}\n'
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait() == -signal.SIGINT
  finally:
    process.kill()
    process.stdout.close()
