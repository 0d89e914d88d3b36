# SPDX-License-Identifier: Apache-2.0
"""Compares the network that a checkpoint states with that of the settings.

Shapes tell neither activations nor the distances of position buckets, and
with others every answer changes without a word.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from dsbs_jax import contract
from dsbs_jax.core.t5 import network

# Fields that decide which parameters there are or what they compute, and what
# sets them.
FIELDS = {
  name: name.upper()
  for name in (
    'vocab_size',
    'emb_dim',
    'num_heads',
    'head_dim',
    'mlp_dim',
    'num_encoder_layers',
    'num_decoder_layers',
    'mlp_activations',
    'logits_via_embedding',
  )
} | {
  name: f'network.T5Config.{name}' for name in ('num_buckets', 'max_distance')
}
_CONTINUED = re.compile(r'\\\n\s*')
_MACRO = re.compile(r'^(\w+) = (.*)$', re.MULTILINE)
_FIELD = re.compile(r'^(?:\S*\.)?T5Config\.(\w+) = (.*)$', re.MULTILINE)


def check(
  config: network.T5Config, stated: Mapping[str, Any], place: str
) -> None:
  """Raises where a checkpoint states another network.

  Args:
    config: the network of the settings.
    stated: fields of T5Config that the checkpoint states, JSON's lists for
      tuples; those that change no answer are not compared.
    place: the checkpoint, for the error.

  Raises:
    UserError: it lists each difference, and what to set.
  """
  there = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in stated.items()
    if name in FIELDS
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
    f'--gin.{FIELDS[name]}="{value!r}"' for name, value in wrong.items()
  )
  raise contract.UserError(
    f'{place} holds another network than the settings: {found}. Give the model'
    f' file of the checkpoint, or {flags}.'
  )


def read_gin(folder: str) -> dict[str, Any]:
  """Fields of T5Config in the config.gin that T5X leaves beside checkpoints.

  Args:
    folder: a checkpoint; its parent is looked at too.

  Returns:
    Field -> value, {} where there is no such file.
  """
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
