# SPDX-License-Identifier: Apache-2.0
"""The layers of a stack, as a Python loop or as lax.scan, recomputed or not.

And what the configs of all network families check alike.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn

import jax

from dsbs_jax import contract
from dsbs_jax.core.layers import dropout, parameter_tree

_REMAT_CHOICES = ('none', 'minimal', 'full')


def check_config(config: Any) -> None:
  """Raises UserError where a field that every family has makes no sense."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.type is int and not (isinstance(value, int) and value >= 1):
      refuse(config, field.name, 'an int >= 1.')
    if field.type is bool and not isinstance(value, bool):
      refuse(config, field.name, 'True or False.')
  rate = config.dropout_rate
  if not (isinstance(rate, int | float) and 0.0 <= rate < 1.0):
    refuse(config, 'dropout_rate', 'a number in [0, 1).')
  if config.dtype not in ('float32', 'bfloat16'):
    refuse(
      config,
      'dtype',
      'float32 or bfloat16 (parameters stay float32). A T5 or a Gemma overflows'
      ' in float16: use bfloat16.',
    )
  if config.remat not in _REMAT_CHOICES:
    refuse(config, 'remat', f'one of {_REMAT_CHOICES}.')


def refuse(config: Any, name: str, expected: str) -> NoReturn:
  """Raises UserError for a field of a network's config."""
  raise contract.UserError(
    f'{type(config).__name__}.{name} is {getattr(config, name)!r}, expected'
    f' {expected}'
  )


def run(
  layer: Callable,
  params: dict,
  inputs: jax.Array,
  *,
  config: Any,
  stack: str,
  num_layers: int,
  layer_kv: dict | None,
  keys: jax.Array | None,
) -> tuple[jax.Array, dict | None]:
  """Runs the layers of one stack.

  Args:
    layer: (layer_params, inputs, layer_kv, keys) -> (outputs, new layer_kv).
    params: the stack's.
    inputs: of the first layer.
    config: the network, for remat and scan_layers.
    stack: its name.
    num_layers: N.
    layer_kv: under the layers' names what each reads; with scan_layers one
      entry with a leading axis N. None: each layer reads None.
    keys: typed keys of the rows [B]; None for no dropout.

  Returns:
    The last layer's outputs; the new layer_kv, in the same layout.

  Raises:
    UserError: the parameters have the other layout.
  """
  names = parameter_tree.layer_names(num_layers, scan_layers=config.scan_layers)
  if names[0] not in params:
    found = sorted(name for name in params if name.startswith('layers'))
    raise contract.UserError(
      f'The {stack} has subtrees {found}, expected {list(names)} with'
      f' {type(config).__name__}.scan_layers={config.scan_layers}. Convert the'
      ' parameters by network.stack_layers or network.unstack_layers.'
    )
  if config.remat != 'none':
    policy = None
    if config.remat == 'minimal':
      policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    layer = jax.checkpoint(
      layer, policy=policy, prevent_cse=not config.scan_layers
    )
  if config.scan_layers:
    layer_keys = None if keys is None else dropout.split_keys(keys, num_layers)
    stacked = (params['layers'], layer_kv and layer_kv['layers'], layer_keys)
    outputs, changed = jax.lax.scan(
      lambda x, xs: layer(xs[0], x, xs[1], xs[2]), inputs, stacked
    )
    return outputs, {'layers': changed}
  outputs, changed = inputs, {}
  all_keys = dropout.split_keys(keys, num_layers)
  for name, layer_keys in zip(names, all_keys, strict=True):
    outputs, changed[name] = layer(
      params[name], outputs, layer_kv and layer_kv[name], layer_keys
    )
  return outputs, changed
