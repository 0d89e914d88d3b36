# SPDX-License-Identifier: Apache-2.0
"""The layers of a stack, as a Python loop or as lax.scan, recomputed or not."""

from collections.abc import Callable
from typing import Any

import jax

from dsbs_jax import contract
from dsbs_jax.core.layers import dropout, parameter_tree

REMAT_CHOICES = ('none', 'minimal', 'full')


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
