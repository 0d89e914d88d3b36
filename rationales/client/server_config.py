# SPDX-License-Identifier: Apache-2.0
"""Who answers, how fast it may be asked and asked again, and the client."""

import dataclasses
import math
import random
import urllib.parse

import openai

from dsbs_jax import contract
from rationales.client import bounded_response, secret

BACKENDS = ('http', 'batch', 'replay')
_MAX_CONNECTIONS = 1000  # that the client opens


@dataclasses.dataclass(frozen=True)
class Backoff:
  """Waiting times between the attempts of one call, in seconds.

  Raises:
    contract.UserError: there is no attempt.
  """

  attempts: int = 8  # for one call before it counts as failed
  base: float = 0.5  # upper limit of the first wait; doubles each time
  cap: float = 60.0  # upper limit of all waits
  longest: float = 600.0  # a Retry-After of more ends the run

  def __post_init__(self):
    if self.attempts < 1:
      raise contract.UserError(
        f'--attempts is {self.attempts}, expected 1 or more.'
      )

  def wait(self, attempt: int, retry_after: float | None) -> float:
    """Seconds to wait after a failed attempt.

    The wait is drawn from [0, limit], so that calls that failed together do
    not return together, and added to what the server asked for. Attempts count
    from 1.
    """
    limit = min(self.cap, self.base * 2 ** (attempt - 1))
    return (retry_after or 0.0) + random.uniform(0, limit)


@dataclasses.dataclass(frozen=True)
class ServerConfig:
  """Who answers, and how fast it may be asked.

  Batches to be forgotten are those that the server no longer knows: their cost
  counts as lost, their rows are asked again.

  Raises:
    contract.UserError: a value is out of range or missing.
  """

  backend: str  # one of BACKENDS
  base_url: str  # up to and with `/v1`
  key: secret.Secret
  timeout: float = 120.0  # seconds, however slowly the bytes of a call arrive
  concurrency: int = 64  # calls at once, at most
  rpm: float = 0.0  # requests per minute; 0 sets no limit
  tpm: float = 0.0  # tokens per minute; 0 sets no limit
  backoff: Backoff = Backoff()
  poll_seconds: float = 30.0  # between two polls of a batch
  batch_size: int = 20_000  # calls per batch, at most
  forget_batches: bool = False
  replay: str | None = None  # the completions file of the replay backend
  outage_timeout: float = 3600.0  # seconds that calls wait for a server
  key_variable: str = 'OPENAI_API_KEY'  # of the environment

  def __post_init__(self):
    try:
      parts = urllib.parse.urlsplit(self.base_url)
      valid = parts.scheme in ('http', 'https') and parts.hostname
      valid, shown = valid and parts.port != 0, repr(self.public_url)
    except ValueError as error:
      valid, shown = False, f'no address ({error})'
    if not valid:
      raise contract.UserError(
        f'--base_url is {shown}, expected an address such as'
        ' http://localhost:8000/v1.'
      )
    if not 0 < self.timeout < math.inf:
      raise contract.UserError(
        f'--timeout is {self.timeout}, expected more than 0 seconds.'
      )
    if not (
      1 <= self.concurrency <= _MAX_CONNECTIONS
      and self.rpm >= 0
      and self.tpm >= 0
    ):
      raise contract.UserError(
        f'--concurrency is {self.concurrency}, --rpm {self.rpm}, --tpm'
        f' {self.tpm}; expected at least 1 (and at most {_MAX_CONNECTIONS}), 0'
        ' and 0 (0 sets no limit).'
      )
    if self.batch_size < 1 or self.poll_seconds < 0:
      raise contract.UserError(
        f'--batch_size is {self.batch_size} and --poll_seconds'
        f' {self.poll_seconds}, expected at least 1 and 0.'
      )
    if not self.outage_timeout >= 0:
      raise contract.UserError(
        f'--outage_timeout is {self.outage_timeout}, expected 0 seconds or'
        ' more.'
      )
    if self.backend == 'replay' and not self.replay:
      raise contract.UserError('--backend=replay needs --replay=FILE.')

  @property
  def public_url(self) -> str:
    """The address without user, password and query, which may hold a key."""
    return public(self.base_url)

  @property
  def key_hint(self) -> str:
    """What to add to a refusal where no key was sent."""
    return (
      f'; the environment variable {self.key_variable} is not set: export the'
      " server's key in it, or name another one with --key_variable"
    )

  def client(self) -> openai.AsyncOpenAI:
    """The official client, without retries of its own."""
    return openai.AsyncOpenAI(
      base_url=self.base_url,
      api_key=self.key.reveal() or 'none',
      max_retries=0,
      timeout=self.timeout,
      http_client=openai.DefaultAsyncHttpxClient(
        timeout=self.timeout, event_hooks={'response': [bounded_response.bound]}
      ),
    )


def public(url: str) -> str:
  """An address without user, password and query, which may hold a key."""
  parts = urllib.parse.urlsplit(url)
  host = parts.netloc.rpartition('@')[2]
  return urllib.parse.urlunsplit((parts.scheme, host, parts.path, '', ''))
