# SPDX-License-Identifier: Apache-2.0
"""The ways a call can fail, and a run can end."""

import dataclasses
import enum

# What a failed attempt tells about the server.
UNREACHABLE, LOADING, ANSWERED = 'unreachable', 'loading', 'answered'
INTERRUPTED = 'interrupted; the same command continues'


class ExitReason(enum.Enum):
  """Why a run ended, online or by the Batch API."""

  DONE = 'done'
  BUDGET = 'the budget is used up'
  REFUSED = 'the server refuses all calls'
  INTERRUPTED = 'interrupted'


@dataclasses.dataclass(eq=False)
class TransientError(Exception):
  """A failure that may not happen at the next attempt."""

  reason: str  # for the completions file; str(error) is this
  _: dataclasses.KW_ONLY
  retry_after: float | None = None  # seconds, if the server asked to wait
  overload: bool = False  # whether the server says that it gets too many calls
  maybe_paid: bool = False  # whether the server may have charged for the call
  server: str | None = None  # UNREACHABLE, LOADING, ANSWERED or not known

  @property
  def down(self) -> bool:
    """Whether every call would have met this, until the server is up."""
    return self.server in (UNREACHABLE, LOADING)


@dataclasses.dataclass(eq=False)
class PermanentError(Exception):
  """A failure of this call that another attempt would only repeat."""

  reason: str  # for the completions file; str(error) is this
  _: dataclasses.KW_ONLY
  status: int | None = None  # of HTTP
  maybe_paid: bool = False  # whether the server may have charged for the call


class FatalError(Exception):
  """A failure that every call would meet: the run ends."""
