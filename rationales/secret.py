# SPDX-License-Identifier: Apache-2.0
"""The API key: read from the environment, kept out of everything written.

A server may echo the key in an error, a proxy in a header, a debug log in
either. So nothing relies on good manners: every text on its way to a file,
the screen or a log passes `Secret.redact`.
"""

import json
import logging
import os

MASK = '[key]'

# Local servers take any word as a key ('none', 'EMPTY'). Masking a word that
# short would damage honest text, and it protects nothing.
_SHORTEST = 8


class Secret:
  """A key that prints as a mask.

  Args:
    value: the key, or '' where the server wants none.
  """

  def __init__(self, value: str):
    self._value = value
    spelled = {value, json.dumps(value)[1:-1], repr(value)[1:-1]}
    self._hidden = sorted(spelled) if len(value) >= _SHORTEST else []

  def reveal(self) -> str:
    """The key itself, for the client's Authorization header only."""
    return self._value

  def redact(self, text: str) -> str:
    """The text with every occurrence of the key masked."""
    for spelling in self._hidden:
      text = text.replace(spelling, MASK)
    return text

  def guard_logs(self) -> None:
    """Masks the key in every log record made from now on, at any level."""
    make = logging.getLogRecordFactory()

    def factory(*args, **kwargs) -> logging.LogRecord:
      record = make(*args, **kwargs)
      message = record.getMessage()
      if self.redact(message) != message:
        record.msg, record.args = self.redact(message), ()
      return record

    if self._hidden:
      logging.setLogRecordFactory(factory)

  def __repr__(self) -> str:
    return f'Secret({MASK!r})'

  __str__ = __repr__


def from_environment(variable: str) -> Secret:
  """The key in this environment variable; empty where it is not set.

  Raises:
    ValueError: it has characters that no HTTP header can carry.
  """
  value = os.environ.get(variable, '').strip()
  if not (value.isascii() and value.isprintable()):
    raise ValueError(
      f'The environment variable {variable} holds something else than an API'
      ' key: expected printable ASCII characters. Set it again.'
    )
  return Secret(value)
