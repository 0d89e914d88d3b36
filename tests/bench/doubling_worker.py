# SPDX-License-Identifier: Apache-2.0
"""A worker that answers a number with its double, and says where it runs."""

import os

from bench import worker

if __name__ == '__main__':
  worker.serve(
    lambda request: {'double': 2 * int(request)},
    {'cores': sorted(os.sched_getaffinity(0))},
  )
