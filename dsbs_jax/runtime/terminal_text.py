# SPDX-License-Identifier: Apache-2.0
"""Untrusted text on a terminal: control characters are shown as escapes."""

import re

# Controls but tab and newline; what reorders, hides or overlays text; lone
# surrogates, which no terminal can print.
_STEERING = re.compile(
  '[\x00-\x08\x0b-\x1f\x7f-\x9f'
  '\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb'
  '\ud800-\udfff\U000e0000-\U000e007f]'
)


def visible(text: str) -> str:
  """The text with every steering character as its escape, such as \\x1b."""
  return _STEERING.sub(lambda match: ascii(match[0])[1:-1], text)
