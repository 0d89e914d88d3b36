# SPDX-License-Identifier: Apache-2.0
"""python -m tests.mutants: see runner.py."""

import signal
import sys

from tests.mutants import runner

if __name__ == '__main__':
  # In a shell's background SIGINT is ignored, and tests would wait for it.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  sys.exit(runner.main())
