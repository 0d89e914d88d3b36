# SPDX-License-Identifier: Apache-2.0
"""The T5 of the papers in plain NumPy, to compare with."""

import jax
import numpy as np

from dsbs_jax.core.t5 import attention


class SlowT5:
  """One example, no padding, float64, loops over heads and positions."""

  def __init__(self, params, config):
    self.params = jax.tree.map(np.float64, params)
    self.config = config
    self.embedding = self.params['token_embedder']['embedding']

  def norm(self, x, layer):
    mean_square = (x**2).mean(axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + 1e-6) * layer['scale']

  def attend(self, layer, queries, memory, table=None, causal=False):
    output = np.zeros_like(queries)
    width = self.config.head_dim
    for head in range(self.config.num_heads):
      columns = slice(head * width, (head + 1) * width)
      query, key, value = (
        inputs @ layer[name]['kernel'][:, columns]
        for inputs, name in zip(
          (queries, memory, memory), ('query', 'key', 'value'), strict=True
        )
      )
      for t in range(len(queries)):
        last = t + 1 if causal else len(memory)
        scores = key[:last] @ query[t]
        if table is not None:
          buckets = attention.relative_position_bucket(
            np.arange(last) - t,
            bidirectional=not causal,
            num_buckets=self.config.num_buckets,
            max_distance=self.config.max_distance,
          )
          scores = scores + table[head, buckets]
        weights = np.exp(scores - scores.max())
        context = weights / weights.sum() @ value[:last]
        output[t] += context @ layer['out']['kernel'][columns]
    return output

  def mlp(self, layer, x):
    if self.config.mlp_activations == ('relu',):
      hidden = np.maximum(x @ layer['wi']['kernel'], 0)
    else:
      gate = x @ layer['wi_0']['kernel']
      inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
      hidden = gate * (1 + np.tanh(inner)) / 2 * (x @ layer['wi_1']['kernel'])
    return hidden @ layer['wo']['kernel']

  def table(self, stack, layer):
    owner = layer if self.config.relpos_bias_per_layer else stack
    return owner['relpos_bias']['rel_embedding']

  def __call__(self, source, target):
    encoder, decoder = self.params['encoder'], self.params['decoder']
    x = self.embedding[source]
    for i in range(self.config.num_encoder_layers):
      layer = encoder[f'layers_{i}']
      table = self.table(encoder, layer)
      y = self.norm(x, layer['pre_attention_layer_norm'])
      x = x + self.attend(layer['attention'], y, y, table)
      y = self.norm(x, layer['pre_mlp_layer_norm'])
      x = x + self.mlp(layer['mlp'], y)
    encoded = self.norm(x, encoder['encoder_norm'])
    x = self.embedding[[0, *target[:-1]]]
    for i in range(self.config.num_decoder_layers):
      layer = decoder[f'layers_{i}']
      table = self.table(decoder, layer)
      y = self.norm(x, layer['pre_self_attention_layer_norm'])
      x = x + self.attend(layer['self_attention'], y, y, table, causal=True)
      y = self.norm(x, layer['pre_cross_attention_layer_norm'])
      x = x + self.attend(layer['encoder_decoder_attention'], y, encoded)
      y = self.norm(x, layer['pre_mlp_layer_norm'])
      x = x + self.mlp(layer['mlp'], y)
    x = self.norm(x, decoder['decoder_norm'])
    if self.config.logits_via_embedding:
      return x @ self.embedding.T / np.sqrt(self.config.emb_dim)
    return x @ decoder['logits_dense']['kernel']
