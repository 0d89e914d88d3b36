# SPDX-License-Identifier: Apache-2.0
"""The ways a call can fail, and what each says of the server."""

# What a failed attempt tells about the server.
UNREACHABLE, LOADING, ANSWERED = 'unreachable', 'loading', 'answered'


class TransientError(Exception):
  """A failure that may not happen at the next attempt.

  Args:
    reason: for the completions file.
    retry_after: seconds the server asked to wait, if it did.
    overload: whether the server says that it gets too many calls.
    maybe_paid: whether the server may have charged for the call.
    server: UNREACHABLE, LOADING or ANSWERED, None where that is not known.
  """

  def __init__(
    self,
    reason: str,
    *,
    retry_after: float | None = None,
    overload: bool = False,
    maybe_paid: bool = False,
    server: str | None = None,
  ):
    super().__init__(reason)
    self.retry_after = retry_after
    self.overload = overload
    self.maybe_paid = maybe_paid
    self.server = server

  @property
  def down(self) -> bool:
    """Whether every call would have met this, until the server is up."""
    return self.server in (UNREACHABLE, LOADING)


class PermanentError(Exception):
  """A failure of this call that another attempt would only repeat.

  Args:
    reason: for the completions file.
    status: the HTTP status, if there was one.
    maybe_paid: whether the server may have charged for the call.
  """

  def __init__(
    self, reason: str, status: int | None = None, *, maybe_paid: bool = False
  ):
    super().__init__(reason)
    self.status = status
    self.maybe_paid = maybe_paid


class FatalError(Exception):
  """A failure that every call would meet: the run ends."""
