# SPDX-License-Identifier: Apache-2.0
"""Figures of single choices: how this project computes, beside the other way.

Each is a piece of gin/models/mini.gin with its gradient, on the rows that a
batch of 32 pairs of CommonsenseQA is packed into; both ways in turns.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench import attentions, table, worker
from dsbs_jax.core import decoding
from dsbs_jax.core.layers import dot_product_attention, dropout, norm
from dsbs_jax.core.losses import cross_entropy
from dsbs_jax.core.t5 import attention

_ROWS, _LENGTH, _WIDTH, _HEADS, _VOCABULARY = 8, 256, 256, 4, 32128
_TARGETS = 1368  # target tokens of such rows, padding included


class Choice(NamedTuple):
  """Two ways to compute the same: their gradients by all floats, or values."""

  name: str  # what was chosen, and what instead
  ours: Callable[..., jax.Array]
  other: Callable[..., jax.Array]
  arguments: tuple[jax.Array, ...]
  forward: bool = False  # whether values are computed rather than gradients


def choices() -> Iterator[table.Row]:
  """Milliseconds of the gradient by our way, against the other."""
  for choice in (*_of_features(), *_of_vocabulary(), *_of_attention()):
    programs = [_gradient(way, choice) for way in (choice.ours, choice.other)]
    sizes = [
      program.memory_analysis().temp_size_in_bytes for program in programs
    ]
    ours, other = worker.take_turns(
      {
        number: functools.partial(_milliseconds, program, choice.arguments)
        for number, program in enumerate(programs)
      },
      rounds=7,
    ).values()
    mib = ' and '.join(f'{size / 2**20:,.0f}' for size in sizes)
    yield table.row(
      'Choices: one piece of T5 mini, with its gradient, against the other way',
      f'{choice.name} (temporaries {mib} MiB)',
      ours,
      'ms',
      others=other,
      against=f'of {statistics.median(other):.3g} ms',
    )


def _milliseconds(program, arguments) -> float:
  started = time.perf_counter()
  jax.block_until_ready(program(*arguments))
  return 1000 * (time.perf_counter() - started)


def _gradient(way, choice):
  """The way's gradient, or itself if its values are wanted, compiled."""
  floats = [
    i
    for i, array in enumerate(choice.arguments)
    if jnp.issubdtype(array.dtype, jnp.floating)
  ]

  def scalar(*arguments):
    out = way(*arguments)
    return jnp.sum(out.reshape(-1, 8) * jnp.cos(jnp.arange(8.0)))

  program = way if choice.forward else jax.grad(scalar, floats)
  return jax.jit(program).lower(*choice.arguments).compile()


def _draw(number, *shape):
  return jax.random.normal(jax.random.key(number), shape)


def _of_features() -> list[Choice]:
  rows = _draw(0, _ROWS, _LENGTH, _WIDTH)
  kernel = _draw(4, _WIDTH, _WIDTH) / 16
  keep_features = jax.random.key(7)
  return [
    Choice(
      'projections as products of matrices, not [D, H, K] kernels',
      lambda x, w: attention.split_heads(attention.dense(x, w), _HEADS),
      lambda x, w: jnp.einsum(
        'BLD,DHK->BHLK', x, w.reshape(_WIDTH, _HEADS, -1)
      ),
      (rows, kernel),
    ),
    Choice(
      "norm with its gradient written out, not autodiff's",
      norm.rms_norm_for_cpu,
      norm.plain_rms_norm,
      (rows, _draw(13, _WIDTH)),
    ),
    Choice(
      'dropout of features, the same for all positions of a row',
      lambda x: _dropped(x, keep_features, (_ROWS, 1, _WIDTH)),
      lambda x: _dropped(x, keep_features, x.shape),
      (rows,),
    ),
  ]


def _of_vocabulary() -> list[Choice]:
  ids = jax.random.randint(jax.random.key(6), (_TARGETS,), 0, _VOCABULARY)
  return [
    Choice(
      'embedding by gather, not by a product with one-hots',
      lambda e: jnp.take(e, ids, axis=0, mode='fill'),
      lambda e: jax.nn.one_hot(ids, _VOCABULARY) @ e,
      (_draw(8, _VOCABULARY, _WIDTH),),
    ),
    Choice(
      "cross entropy with its gradient written out, not autodiff's",
      lambda x: cross_entropy.token_losses(x, ids)[0],
      lambda x: (
        -jnp.take_along_axis(jax.nn.log_softmax(x), ids[:, None], axis=1)[:, 0]
      ),
      (_draw(9, _TARGETS, _VOCABULARY),),
    ),
    Choice(
      'argmax in two stages, not in one (forward)',
      decoding.argmax_for_cpu,
      decoding.plain_argmax,
      (_draw(10, 32, _VOCABULARY),),
      forward=True,
    ),
  ]


def _of_attention() -> list[Choice]:
  heads = [
    _draw(i, _ROWS, _HEADS, _LENGTH, _WIDTH // _HEADS) for i in range(1, 4)
  ]
  weights = _draw(11, _ROWS, _HEADS, _LENGTH, _LENGTH)
  rows = {
    'encoder_input_tokens': jnp.ones((_ROWS, _LENGTH), jnp.int32),
    'encoder_segment_ids': jnp.tile(jnp.arange(_LENGTH) // 45, (_ROWS, 1)),
  }
  mask = attention.make_attention_mask(rows, 'encoder', 'encoder')
  bias_table = _draw(5, _HEADS, 32)
  buckets = attention.relative_position_bucket(
    np.arange(_LENGTH)[None] - np.arange(_LENGTH)[:, None], bidirectional=True
  )
  bias = bias_table[:, buckets][None]
  dropped_keys = jax.random.bernoulli(
    jax.random.key(12), 0.9, (_ROWS, _HEADS, _LENGTH, 1)
  )

  def ours(query, key, value, bias):
    return dot_product_attention.attention_for_cpu(
      query, key, value, bias, mask
    )

  return [
    Choice(
      'relative bias as shifted rows, not looked up pair by pair',
      lambda t: attention.relative_position_bias(
        t, _LENGTH, _LENGTH, bidirectional=True
      ),
      lambda t: t[:, buckets][None],
      (bias_table,),
    ),
    Choice(
      'attention written out, not jax.nn.dot_product_attention',
      ours,
      lambda q, k, v, b: attentions.of_library(q, k, v, b, mask),
      (*heads, bias),
    ),
    Choice(
      "attention with its gradient written out, not autodiff's",
      ours,
      lambda q, k, v, b: dot_product_attention.plain_attention(
        q, k, v, b, mask
      ),
      (*heads, bias),
    ),
    Choice(
      'dropout of a key on its value, not on its probabilities',
      lambda p, v: p @ dropout.dropout(v, dropped_keys, rate=0.1),
      lambda p, v: (
        dropout.dropout(p, jnp.swapaxes(dropped_keys, 2, 3), rate=0.1) @ v
      ),
      (weights, heads[2]),
    ),
  ]


def _dropped(inputs, key, shape):
  keep = jax.random.bernoulli(key, 0.9, shape)
  return dropout.dropout(inputs, keep, rate=0.1)
