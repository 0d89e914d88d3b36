# SPDX-License-Identifier: Apache-2.0
"""How long a call waits before it is tried again."""

import dataclasses
import random

from dsbs_jax import contract


@dataclasses.dataclass(frozen=True)
class Backoff:
  """Waiting times between the attempts of one call.

  Attributes:
    attempts: attempts for one call before it counts as failed.
    base: upper limit of the first wait, in seconds; doubles each time.
    cap: upper limit of all waits, in seconds.
    longest: a Retry-After of more seconds ends the run.

  Raises:
    contract.UserError: there is no attempt.
  """

  attempts: int = 8
  base: float = 0.5
  cap: float = 60.0
  longest: float = 600.0

  def __post_init__(self):
    if self.attempts < 1:
      raise contract.UserError(
        f'--attempts is {self.attempts}, expected 1 or more.'
      )

  def wait(self, attempt: int, retry_after: float | None) -> float:
    """Seconds to wait after a failed attempt.

    The wait is drawn from [0, limit], so that calls that failed together do
    not return together, and added to what the server asked for.

    Args:
      attempt: number of the attempt, from 1.
      retry_after: seconds the server asked to wait, if it did.
    """
    limit = min(self.cap, self.base * 2 ** (attempt - 1))
    return (retry_after or 0.0) + random.uniform(0, limit)
