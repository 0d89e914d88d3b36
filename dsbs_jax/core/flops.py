# SPDX-License-Identifier: Apache-2.0
"""FLOPs of a network, from shapes: multiplications and additions.

Only matrix products count, as in published figures of utilisation; norms,
softmax, activations and the optimizer are less than 3 % of a small model.
"""

import re
from typing import Any

import numpy as np

from dsbs_jax.core import lora as lora_lib
from dsbs_jax.core import network

Count = int | np.ndarray
# A backward pass computes two gradients per product.
TRAINING = 3
_CROSS_KV = re.compile('/encoder_decoder_attention/(key|value)/')


def forward(
  config: network.Config,
  inputs: Count,
  targets: Count,
  *,
  rows: Count = 1,
  tokens: tuple[Count, Count] | None = None,
) -> Count:
  """FLOPs of a forward pass over rows of one length, logits included.

  Args:
    config: the network.
    inputs: S, encoder tokens of a row; a number or a NumPy array.
    targets: T, decoder tokens of a row, likewise.
    rows: how many such rows.
    tokens: encoder and decoder tokens of all rows outside of attention, where
      padding may be left out; None: all positions of all rows.

  Returns:
    A number or an array like `inputs`. Attention counts all S x S, T x T and
    T x S pairs, as they are computed.
  """
  sources, outputs = tokens or (rows * inputs, rows * targets)
  if isinstance(config, network.GemmaConfig):
    pairs = rows * inputs * inputs, rows * targets * (targets + inputs)
    return _gemma(config, sources, outputs, pairs=pairs)
  width = config.num_heads * config.head_dim
  attention_kernel = config.emb_dim * width
  mlp = (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim
  encoder = sources * (4 * attention_kernel + mlp)
  encoder += 2 * rows * inputs * inputs * width
  decoder = outputs * (6 * attention_kernel + mlp)
  decoder += sources * 2 * attention_kernel  # keys and values of the encoder
  decoder += 2 * rows * targets * (targets + inputs) * width
  total = config.num_encoder_layers * encoder
  total += config.num_decoder_layers * decoder
  total += outputs * config.emb_dim * config.vocab_size
  return 2 * total


def _gemma(
  config: network.GemmaConfig,
  sources: Count,
  outputs: Count,
  *,
  pairs: tuple[Count, Count],
) -> Count:
  """`forward` of a Gemma.

  `sources` and `outputs` are tokens outside of attention, `pairs` those of a
  query and a key, of inputs and of targets. Of a Gemma 3's inputs, the last
  layer computes keys and values alone; a T5Gemma 2 makes those of its decoder
  of the encoder's result.
  """
  width = config.num_heads * config.head_dim
  keys = 2 * config.emb_dim * config.num_kv_heads * config.head_dim
  others = config.emb_dim * (2 * width + 3 * config.mlp_dim)
  input_layers = config.num_layers - (not config.has_encoder)
  total = input_layers * (sources * others + 2 * pairs[0] * width)
  total += config.num_layers * sources * keys * (1 + config.has_encoder)
  total += config.num_layers * (
    outputs * (keys + others) + 2 * pairs[1] * width
  )
  return 2 * (total + outputs * config.emb_dim * config.vocab_size)


def train(
  config: network.Config,
  inputs: Count,
  targets: Count,
  *,
  lora: lora_lib.LoRA = lora_lib.OFF,
  **options: Any,
) -> Count:
  """FLOPs of a forward and a backward pass; arguments as in `forward`.

  With a rank of LoRA, products with frozen kernels have one gradient, not two,
  and the adapters' products are added.
  """
  whole = forward(config, inputs, targets, **options)
  if not lora.rank:
    return TRAINING * whole
  pairs = forward(config, inputs, targets, **options | {'tokens': (0, 0)})
  rows = options.get('rows', 1)
  tokens = options.get('tokens') or (rows * inputs, rows * targets)
  adapters = _adapters(config, lora, *tokens)
  return (TRAINING - 1) * (whole - pairs) + TRAINING * (pairs + adapters)


def _adapters(
  config: network.Config, lora: lora_lib.LoRA, sources: Count, outputs: Count
) -> Count:
  """Forward FLOPs of LoRA's own products, of tokens of each side."""
  total = 0
  for name, number in lora_lib.sizes(config, lora).items():
    of_inputs = name.startswith('encoder/') or _CROSS_KV.search(name)
    tokens = sources if of_inputs else outputs
    if isinstance(config, network.GemmaConfig):
      tokens = sources + outputs
    total += 2 * number * tokens
  return total
