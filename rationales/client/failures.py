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
  """A failure that may not happen at the next attempt.

  Attributes:
    reason: for the completions file.
    retry_after: seconds the server asked to wait, if it did.
    overload: whether the server says that it gets too many calls.
    maybe_paid: whether the server may have charged for the call.
    server: UNREACHABLE, LOADING or ANSWERED, None where that is not known.
  """

  reason: str
  _: dataclasses.KW_ONLY
  retry_after: float | None = None
  overload: bool = False
  maybe_paid: bool = False
  server: str | None = None

  def __str__(self) -> str:
    return self.reason

  @property
  def down(self) -> bool:
    """Whether every call would have met this, until the server is up."""
    return self.server in (UNREACHABLE, LOADING)


@dataclasses.dataclass(eq=False)
class PermanentError(Exception):
  """A failure of this call that another attempt would only repeat.

  Attributes:
    reason: for the completions file.
    status: the HTTP status, if there was one.
    maybe_paid: whether the server may have charged for the call.
  """

  reason: str
  status: int | None = None
  _: dataclasses.KW_ONLY
  maybe_paid: bool = False

  def __str__(self) -> str:
    return self.reason


class FatalError(Exception):
  """A failure that every call would meet: the run ends."""
