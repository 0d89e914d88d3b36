# SPDX-License-Identifier: Apache-2.0
"""Why a request is refused, in the form in which OpenAI's clients read it."""

import math
from typing import Any

# Of a message, which may repeat what it was sent.
_LONGEST = 500


class APIError(Exception):
  """A request that is not answered.

  Args:
    status: of HTTP.
    message: value, expectation and remedy.
    param: the field of the body that is to blame.
    code: a short name, for programs.
    retry_after: seconds after which another attempt may go well.
    close: whether to close the connection.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    retry_after: float | None = None,
    close: bool = False,
  ):
    super().__init__(message)
    self.status, self.param, self.code = status, param, code
    self.retry_after, self.close = retry_after, close

  @property
  def kind(self) -> str:
    """OpenAI's `type`: whose fault it is."""
    return 'invalid_request_error' if self.status < 500 else 'server_error'

  def body(self) -> dict[str, Any]:
    """The JSON of the response."""
    return {
      'error': {
        'message': str(self)[:_LONGEST],
        'type': self.kind,
        'param': self.param,
        'code': self.code,
      }
    }

  def headers(self) -> dict[str, str]:
    """What else the response says."""
    if self.retry_after is None:
      return {}
    return {'Retry-After': str(max(1, math.ceil(self.retry_after)))}


def invalid_request(
  message: str, *, param: str | None = None, code: str | None = None
) -> APIError:
  """A request that is wrong in itself, whoever asks and when."""
  return APIError(400, message, param=param, code=code or 'invalid_value')
