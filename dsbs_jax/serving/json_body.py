# SPDX-License-Identifier: Apache-2.0
"""Checks what a JSON body holds: fields, texts, lists; else an APIError."""

import json
from collections.abc import Collection, Sequence
from typing import Any

from dsbs_jax.serving import errors


def decode(body: bytes) -> dict[str, Any]:
  """Parses a body, which must be a JSON object in UTF-8."""
  try:
    value = json.loads(body.decode('utf-8'), parse_constant=_refuse_constant)
  except UnicodeDecodeError as error:
    raise errors.invalid_request(
      f'the body has the byte 0x{body[error.start]:02x} at position'
      f' {error.start:,}, expected JSON in UTF-8.',
      code='invalid_utf8',
    ) from None
  except (ValueError, RecursionError) as error:
    reason = 'nests too deep' if isinstance(error, RecursionError) else error
    raise errors.invalid_request(
      f'the body cannot be read ({reason}), expected a JSON object.',
      code='invalid_json',
    ) from None
  if not isinstance(value, dict):
    raise errors.invalid_request(
      f'the body is a JSON {type(value).__name__}, expected an object.',
      code='invalid_json',
    )
  return value


def check_fields(body: dict[str, Any], known: Collection[str]) -> None:
  """Checks that each field of a body is known, so that none is ignored."""
  unknown = sorted(set(body) - set(known))
  if unknown:
    raise errors.invalid_request(
      f'the field {_short(unknown[0])} is not known, expected some of'
      f' {", ".join(sorted(known))}.',
      param=unknown[0][:100],
      code='unknown_field',
    )


def text(value: Any, param: str) -> str:
  """The value, if it is a text that a student can read."""
  _check_type(value, str, param, 'a string')
  if '\0' in value:
    raise errors.invalid_request(
      f'{param} has a NUL character at position {value.index(chr(0)):,},'
      ' expected text. Remove it.',
      param=param,
    )
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise errors.invalid_request(
      f'{param} has a lone surrogate at position {error.start:,}, expected'
      ' text. Remove it.',
      param=param,
    ) from None
  if not value.strip():
    raise errors.invalid_request(
      f'{param} is blank, expected text.', param=param
    )
  return value


def texts(value: Any, param: str, *, most: int) -> list[str]:
  """The value, if it is a list of one to `most` texts."""
  found = items(value, param, most=most)
  return [text(item, f'{param}[{i}]') for i, item in enumerate(found)]


def items(value: Any, param: str, *, most: int) -> Sequence[Any]:
  """The value, if it is a list of one to `most` items."""
  _check_type(value, list, param, 'a list')
  if not 1 <= len(value) <= most:
    raise errors.invalid_request(
      f'{param} has {len(value):,} items, expected 1 to {most:,}.',
      param=param,
    )
  return value


def _check_type(value: Any, kind: type, param: str, expected: str) -> None:
  if not isinstance(value, kind):
    raise errors.invalid_request(
      f'{param} is a JSON {type(value).__name__}, expected {expected}.',
      param=param,
      code='invalid_type',
    )


def _refuse_constant(name: str) -> None:
  raise ValueError(f'{name} is not JSON')


def _short(name: str) -> str:
  return repr(name if len(name) <= 40 else name[:40] + '...')
