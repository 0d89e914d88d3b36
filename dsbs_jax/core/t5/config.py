# SPDX-License-Identifier: Apache-2.0
"""The size and the variant of a T5, checked where it is made."""

import dataclasses
import functools

import jax

from dsbs_jax.core.layers import layer_loop

ACTIVATIONS = {
  'gelu': functools.partial(jax.nn.gelu, approximate=True),
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
  'linear': lambda inputs: inputs,
}


@dataclasses.dataclass(frozen=True)
class T5Config:
  """The size and the variant of a T5.

  Attributes:
    vocab_size: V, rows of the embedding (32128 for the public vocabulary).
    emb_dim: D, the width of the model.
    num_heads: H, attention heads.
    head_dim: K, the width of one head; H * K need not be D.
    mlp_dim: F, the hidden width of the MLP.
    num_encoder_layers: N of the encoder.
    num_decoder_layers: N of the decoder.
    mlp_activations: ('gelu', 'linear') for T5 1.1, ('relu',) for T5 1.0.
    logits_via_embedding: True ties the logits to the embedding (T5 1.0).
    dropout_rate: at all of T5's dropout sites, when a key is given.
    dtype: of the activations; parameters are float32 always.
    num_buckets: of the relative position bias.
    max_distance: of the relative position bias.
    relpos_bias_per_layer: True gives each layer a relative position bias of its
      own, as umT5 has it; False one per stack.
    remat: what a layer computes again in the backward pass: 'none' keeps
      everything, 'minimal' keeps products with parameters, 'full' keeps the
      layer's input only.
    scan_layers: True runs the layers of a stack as one loop over stacked
      parameters, which compiles faster and runs slower.
  """

  vocab_size: int
  emb_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_encoder_layers: int
  num_decoder_layers: int
  mlp_activations: tuple[str, ...] = ('gelu', 'linear')
  logits_via_embedding: bool = False
  dropout_rate: float = 0.1
  dtype: str = 'float32'
  num_buckets: int = 32
  max_distance: int = 128
  relpos_bias_per_layer: bool = False
  remat: str = 'none'
  scan_layers: bool = False

  def __post_init__(self):
    # gin hands lists over; a frozen, hashable config needs a tuple.
    object.__setattr__(self, 'mlp_activations', tuple(self.mlp_activations))
    layer_loop.check_config(self)
    refuse = functools.partial(layer_loop.refuse, self)
    if not self.mlp_activations or set(self.mlp_activations) - set(ACTIVATIONS):
      refuse(
        'mlp_activations',
        f'one or more of {sorted(ACTIVATIONS)}: T5 1.1 has (gelu, linear), T5'
        ' 1.0 has (relu,).',
      )
    if self.num_buckets < 4 or self.num_buckets % 4:
      refuse(
        'num_buckets',
        'a multiple of 4: half per direction, half of that one distance wide.',
      )
    if self.max_distance <= self.num_buckets // 2:
      refuse(
        'max_distance',
        f'more than {self.num_buckets // 2}, the distances with a bucket of'
        ' their own.',
      )

  def num_layers(self, stack: str) -> int:
    """Layers of 'encoder' or 'decoder'."""
    return getattr(self, f'num_{stack}_layers')

  @property
  def mlp_inputs(self) -> tuple[str, ...]:
    """Names of the MLP's first kernels, one per activation."""
    if len(self.mlp_activations) == 1:
      return ('wi',)
    return tuple(f'wi_{i}' for i in range(len(self.mlp_activations)))
