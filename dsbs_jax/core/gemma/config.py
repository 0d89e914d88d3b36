# SPDX-License-Identifier: Apache-2.0
"""The size and the variant of a Gemma, checked where it is made."""

import dataclasses
import functools
from typing import ClassVar

from dsbs_jax.core.layers import layer_loop


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
  """The size and the variant of a text network of Gemma 3's layers.

  Attributes:
    vocab_size: V, rows of the embedding, which is also the logits' kernel.
    emb_dim: D, the width of the model.
    num_heads: H, attention heads.
    num_kv_heads: heads of keys and values, each shared by as many of H.
    head_dim: K, the width of one head; H * K need not be D.
    mlp_dim: F, the hidden width of the MLP.
    num_layers: N, of each stack.
    window: how many positions a local layer sees, its own included.
    global_period: each layer whose number from 1 is a multiple of this is
      global: it sees all positions.
    local_rope_base: of the rotations in local layers.
    global_rope_base: likewise in global layers.
    global_rope_factor: what positions are divided by in global layers (1 for
      270M and 1B, 8 from 4B on and in T5Gemma 2).
    query_scale_dim: queries are divided by its square root; K but for 27B.
    prefix_lm: whether inputs also attend to those behind them. Gemma 3 was
      not trained so.
    family: 'gemma3', a decoder alone, or 't5gemma2', which has an encoder of
      its own.
    dropout_rate: of embeddings and of what each layer adds, when a key is
      given. Gemma 3 was trained without.
    dtype: of the activations; parameters are float32 always.
    remat: what a layer computes again in the backward pass: 'none' keeps
      everything, 'minimal' keeps products with parameters, 'full' keeps the
      layer's input only.
    scan_layers: True runs the layers as one loop over stacked parameters,
      which compiles faster and runs slower.
  """

  FAMILIES: ClassVar[tuple[str, ...]] = ('gemma3', 't5gemma2')

  vocab_size: int
  emb_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  num_layers: int
  window: int = 512
  global_period: int = 6
  local_rope_base: float = 10_000.0
  global_rope_base: float = 1_000_000.0
  global_rope_factor: float = 1.0
  query_scale_dim: int = 256
  prefix_lm: bool = False
  family: str = 'gemma3'
  dropout_rate: float = 0.0
  dtype: str = 'float32'
  remat: str = 'none'
  scan_layers: bool = False

  def __post_init__(self):
    layer_loop.check_config(self)
    refuse = functools.partial(layer_loop.refuse, self)
    for name in ('local_rope_base', 'global_rope_base', 'global_rope_factor'):
      value = getattr(self, name)
      if not (isinstance(value, int | float) and value > 0):
        refuse(name, 'a number > 0.')
    if self.num_heads % self.num_kv_heads:
      refuse('num_kv_heads', f'a divisor of num_heads, {self.num_heads}.')
    if self.head_dim % 2:
      refuse('head_dim', 'an even number: halves are rotated.')
    if self.family not in self.FAMILIES:
      refuse('family', f'one of {self.FAMILIES}.')
    if self.prefix_lm and self.has_encoder:
      refuse('prefix_lm', 'False: an encoder sees all inputs anyway.')

  @property
  def has_encoder(self) -> bool:
    """Whether inputs have layers of their own, and not those of targets."""
    return self.family == 't5gemma2'

  @property
  def input_stack(self) -> str:
    """The stack that reads inputs."""
    return 'encoder' if self.has_encoder else 'decoder'

  def is_global(self, layer: int) -> bool:
    """Whether a layer, counted from 0, sees all positions."""
    return (layer + 1) % self.global_period == 0
