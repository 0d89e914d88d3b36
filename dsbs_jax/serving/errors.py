# SPDX-License-Identifier: Apache-2.0
"""HTTP errors, in the form in which OpenAI's clients read them."""

import math
from typing import Any

# Characters of a message, which may repeat what was sent.
_MAX_MESSAGE = 500


class APIError(Exception):
  """A request that is not answered.

  Args:
    status: of HTTP.
    message: value, expectation and remedy.
    param: the field of the body that is wrong.
    code: a short name, for programs.
    retry_after: seconds after which another attempt may succeed.
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

  def body(self) -> dict[str, Any]:
    """The JSON of the response."""
    client_error = self.status < 500
    return {
      'error': {
        'message': str(self)[:_MAX_MESSAGE],
        'type': 'invalid_request_error' if client_error else 'server_error',
        'param': self.param,
        'code': self.code,
      }
    }

  def headers(self) -> dict[str, str]:
    """Headers of the response beside aiohttp's own."""
    if self.retry_after is None:
      return {}
    return {'Retry-After': str(max(1, math.ceil(self.retry_after)))}


def invalid_request(
  message: str, *, param: str | None = None, code: str = 'invalid_value'
) -> APIError:
  """A 400: the request is wrong in itself, at any time."""
  return APIError(400, message, param=param, code=code)
