# SPDX-License-Identifier: Apache-2.0
"""Why an extraction ended, online or by the Batch API."""

import enum

INTERRUPTED = 'interrupted; the same command continues'


class ExitReason(enum.Enum):
  """Why a run ended."""

  DONE = 'done'
  BUDGET = 'the budget is used up'
  REFUSED = 'the server refuses all calls'
  INTERRUPTED = 'interrupted'
