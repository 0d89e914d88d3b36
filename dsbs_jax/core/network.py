# SPDX-License-Identifier: Apache-2.0
"""The network families behind one interface, which is all that others ask.

A family is a folder beside this file. Its config says which family it is, and
its modules `network` and `cache` have the functions below, with the arguments
and results that core/t5/ documents: both see an encoder-decoder that reads and
scores row groups (see contract.py). `params` is always the whole parameter
tree, float32, unless said otherwise, and `config` its network.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import jax

from dsbs_jax.core.gemma import cache as gemma_cache
from dsbs_jax.core.gemma import network as gemma_network
from dsbs_jax.core.layers import dropout, parameter_tree, unpadding
from dsbs_jax.core.t5 import cache as t5_cache
from dsbs_jax.core.t5 import network as t5_network

T5Config = t5_network.T5Config
GemmaConfig = gemma_network.GemmaConfig
Config = T5Config | GemmaConfig

Prefilled = t5_cache.Prefilled | gemma_cache.Prefilled
Params = dict[str, Any]
Rows = dict[str, jax.Array]

_NETWORKS = {T5Config: t5_network, GemmaConfig: gemma_network}
_CACHES = {T5Config: t5_cache, GemmaConfig: gemma_cache}


def cache(config: Config) -> types.ModuleType:
  """The family's cached decoder.

  It has `prefill`, `init_decode_state`, `decode_step` and `option_states`; see
  core/t5/cache.py.
  """
  return _CACHES[type(config)]


def tree(config: Config) -> parameter_tree.Tree:
  """What the parameters are, and how they are drawn."""
  return _NETWORKS[type(config)].tree(config)


def make_config(fields: Mapping[str, Any]) -> Config:
  """The config that a run's metadata states.

  Args:
    fields: field -> value, JSON's lists for tuples; all of one family.
  """
  for family in _NETWORKS:
    if set(fields) <= {field.name for field in dataclasses.fields(family)}:
      return family(**fields)
  raise ValueError(f'{sorted(fields)} are no fields of a network family.')


def init(key: jax.Array, config: Config) -> Params:
  """Draws initial parameters, float32, by a typed random key."""
  return tree(config).init(key)


def param_shapes(config: Config) -> Params:
  """The parameter tree with a float32 jax.ShapeDtypeStruct at each leaf."""
  return tree(config).shapes()


def stack_layers(params: Params, config: Config) -> Params:
  """Turns subtrees `layers_0`, `layers_1`, ... into one, `layers`, losslessly.

  That is the layout of `scan_layers=True`; the config's own is not looked at.
  """
  return tree(config).stack(params)


def unstack_layers(params: Params, config: Config) -> Params:
  """The inverse of `stack_layers`."""
  return tree(config).unstack(params)


def hidden(
  params: Params,
  config: Config,
  rows: Rows,
  *,
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """The final hidden state of every target position.

  Args:
    rows: a row group, padded or packed.
    dropout_key: typed key, or one per row [B]; None for no dropout.

  Returns:
    [B, T, D] in the activation dtype; with decoder_token_index [C, n, D], as
    `unpadding.unpad_targets` makes the targets [C, n].
  """
  family = _NETWORKS[type(config)]
  keys = dropout.row_keys(dropout_key, len(rows['encoder_input_tokens']))
  encoder_keys, decoder_keys = dropout.split_keys(keys, 2)
  encoded = family.encode(params, config, rows, dropout_key=encoder_keys)
  states = family.decode(
    params, config, encoded, rows=rows, dropout_key=decoder_keys
  )
  index = rows.get(unpadding.TOKEN_INDEX['decoder'])
  return states if index is None else states.reshape(*index.shape, -1)


def apply(
  params: Params,
  config: Config,
  rows: Rows,
  *,
  dropout_key: jax.Array | None = None,
) -> jax.Array:
  """The logits of every target position, [B, T, V] float32.

  Args:
    rows: as for `hidden`.
    dropout_key: typed key, or one per row [B]; None for no dropout.
  """
  states = hidden(params, config, rows, dropout_key=dropout_key)
  target_unpadding = unpadding.make_unpadding(rows, 'decoder')
  if target_unpadding is not None:
    states = target_unpadding.pad(states.reshape(-1, states.shape[-1]))
  return logits(params, config, states)


def logits(params: Params, config: Config, hidden: jax.Array) -> jax.Array:
  """Scores of all tokens, [..., V], float32 for every activation dtype.

  Args:
    params: the whole parameter tree, or its `logits_params`.
    config: the network.
    hidden: [..., D] in the activation dtype.
  """
  return _NETWORKS[type(config)].logits(params, config, hidden)


def logits_params(params: Params, config: Config) -> Params:
  """The part of the whole parameter tree that `logits` reads."""
  return _NETWORKS[type(config)].logits_params(params, config)
