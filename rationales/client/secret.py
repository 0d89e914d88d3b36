# SPDX-License-Identifier: Apache-2.0
"""The API key: read from the environment, kept out of everything written.

A server may repeat the key in an error message, a proxy in a header, and a
debug log may show both. So every text on its way to a file, the screen or a
log passes `Secret.redact`.
"""

import json
import logging
import os

from dsbs_jax import contract

MASK = '[key]'

# Local servers take any word as a key ('none', 'EMPTY'). Masking such a word
# would damage other text and protect nothing.
_MIN_LENGTH = 8


class Secret:
  """A key that prints as a mask; it is '' if the server wants none."""

  def __init__(self, value: str):
    self._value = value
    # As it is, in JSON and in Python's repr.
    spellings = {value, json.dumps(value)[1:-1], repr(value)[1:-1]}
    self._spellings = sorted(spellings) if len(value) >= _MIN_LENGTH else []

  def reveal(self) -> str:
    """The key itself; only for the client's Authorization header."""
    return self._value

  def redact(self, text: str) -> str:
    """The text with every occurrence of the key masked."""
    for spelling in self._spellings:
      text = text.replace(spelling, MASK)
    return text

  def guard_logs(self) -> None:
    """Masks the key in every log record made from now on, at any level."""
    make = logging.getLogRecordFactory()

    def factory(*args, **kwargs) -> logging.LogRecord:
      record = make(*args, **kwargs)
      try:
        message = record.getMessage()
      except (TypeError, ValueError, KeyError):  # a text that has other places
        message = f'{record.msg} {record.args}'
        record.msg, record.args = message, ()
      if self.redact(message) != message:
        record.msg, record.args = self.redact(message), ()
      return record

    if self._spellings:
      logging.setLogRecordFactory(factory)

  def __repr__(self) -> str:
    return f'Secret({MASK!r})'


def from_environment(variable: str) -> Secret:
  """The key in this environment variable; empty if it is not set.

  Raises:
    contract.UserError: it has characters that no HTTP header can carry.
  """
  value = os.environ.get(variable, '').strip()
  if not (value.isascii() and value.isprintable()):
    raise contract.UserError(
      f'The environment variable {variable} is no API key, expected printable'
      ' ASCII characters. Set it again.'
    )
  return Secret(value)
