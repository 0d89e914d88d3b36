# SPDX-License-Identifier: Apache-2.0
"""python -m tests.mutants: see runner.py."""

import sys

from tests.mutants import runner

if __name__ == '__main__':
  sys.exit(runner.main())
