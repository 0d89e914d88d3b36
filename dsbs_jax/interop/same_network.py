# SPDX-License-Identifier: Apache-2.0
"""Compares the network that a checkpoint states with that of the settings.

Shapes tell neither activations nor the distances of position buckets, and
with others every answer changes without a word.
"""

import ast
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from dsbs_jax import contract
from dsbs_jax.core import network

_FREE = ('dtype', 'remat', 'scan_layers')  # that each run is free to set
# Fields that decide which parameters there are or what they compute, and what
# sets them.
FIELDS = {
  field.name: field.name.upper()
  for field in dataclasses.fields(network.T5Config)
  if field.name not in (*_FREE, 'dropout_rate')
} | {
  name: f'network.T5Config.{name}' for name in ('num_buckets', 'max_distance')
}
# The same of a Gemma.
GEMMA_FIELDS = {
  field.name: field.name.upper()
  for field in dataclasses.fields(network.GemmaConfig)
  if field.name not in _FREE
}
_CONTINUED = re.compile(r'\\\n\s*')
_VALUE = r' = (.*(?:\n[ \t]+.*)*)$'  # it goes on in lines that are indented
_MACRO = re.compile(rf'^(\w+){_VALUE}', re.MULTILINE)
_FIELD = re.compile(rf'^(?:\S*\.)?T5Config\.(\w+){_VALUE}', re.MULTILINE)


def fields_of(stated: Mapping[str, Any]) -> dict[str, str]:
  """`FIELDS`, or `GEMMA_FIELDS` where the stated network is a Gemma."""
  return GEMMA_FIELDS if 'num_kv_heads' in stated else FIELDS


def check(
  config: network.Config, stated: Mapping[str, Any], place: str
) -> None:
  """Raises where a checkpoint states another network.

  Args:
    stated: fields of its config that the checkpoint states, JSON's lists for
      tuples; those that change no answer are not compared.

  Raises:
    UserError: it lists each difference, and what to set.
  """
  fields = fields_of(stated)
  if stated and isinstance(config, network.GemmaConfig) != (
    fields is GEMMA_FIELDS
  ):
    kinds = {True: 'a Gemma', False: 'a T5'}
    raise contract.UserError(
      f'{place} holds {kinds[fields is GEMMA_FIELDS]}, the settings are of'
      f' {kinds[fields is not GEMMA_FIELDS]}. Give the model file of the'
      ' checkpoint.'
    )
  there = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in stated.items()
    if name in fields and name != 'dropout_rate'
  }
  wrong = {
    name: value
    for name, value in there.items()
    if value != getattr(config, name)
  }
  if not wrong:
    return
  found = '; '.join(
    f'{name} is {value} there, {getattr(config, name)} here'
    for name, value in wrong.items()
  )
  flags = ' '.join(
    f'--gin.{fields[name]}="{value!r}"' for name, value in wrong.items()
  )
  raise contract.UserError(
    f'{place} holds another network than the settings: {found}. Give the model'
    f' file of the checkpoint, or {flags}.'
  )


def read_gin(folder: str) -> dict[str, Any]:
  """Fields of T5Config in the config.gin in or above a checkpoint of T5X's."""
  for place in (epath.Path(folder), epath.Path(folder).parent):
    if (place / 'config.gin').is_file():
      text = _CONTINUED.sub(' ', (place / 'config.gin').read_text())
      macros = dict(_MACRO.findall(text))
      found = {
        name: _literal(macros.get(value.strip().removeprefix('%'), value))
        for name, value in _FIELD.findall(text)
      }
      return {k: v for k, v in found.items() if k in FIELDS and v is not None}
  return {}


def _literal(value: str) -> Any:
  try:
    return ast.literal_eval(value.strip())
  except (ValueError, SyntaxError):
    return None  # a reference to something that is computed
