# SPDX-License-Identifier: Apache-2.0
"""A T5 of seven tokens: all of its outputs can be listed."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax.core import decoding, network
from dsbs_jax.core.t5 import cache
from tests import models

TINY = models.t5(
  vocab_size=7,
  emb_dim=8,
  head_dim=4,
  mlp_dim=16,
  num_decoder_layers=2,
  num_buckets=8,
  max_distance=12,
)


ROWS = {
  'encoder_input_tokens': np.array(
    [[3, 4, 5, 6, 2, 1], [2, 2, 1, 0, 0, 0], [6, 5, 1, 0, 0, 0]], np.int32
  )
}


NO_ROW = {'encoder_input_tokens': np.zeros((1, 6), np.int32)}


def params(config=TINY, seed=0):
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key == 'scale':
      return np.ones(leaf.shape, np.float32)
    std = 1.0 if path[-1].key != 'kernel' else leaf.shape[-2] ** -0.5
    return rng.normal(scale=std, size=leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, network.param_shapes(config))


@functools.cache
def greedy(config, max_decode_len):
  return models.jit(
    lambda params, rows: decoding.greedy(
      params, config, rows, max_decode_len=max_decode_len
    )
  )


@functools.cache
def beams(config, num_beams, max_decode_len, rules):
  return models.jit(
    lambda params, rows: decoding.beam_search(
      params,
      config,
      rows,
      num_beams=num_beams,
      max_decode_len=max_decode_len,
      rules=rules,
    )
  )


def teacher_forced(params, config, rows, targets):
  """Logits at every position of given outputs [B, T], which may hold 0s."""
  return network.apply(
    params,
    config,
    {
      'encoder_input_tokens': rows['encoder_input_tokens'],
      'decoder_input_tokens': jnp.pad(targets[:, :-1], ((0, 0), (1, 0))),
      # Of the targets the network reads only which are padding: none.
      'decoder_target_tokens': jnp.ones_like(targets),
    },
  )


@functools.cache
def all_log_probs_function(config):
  @models.jit
  def log_probs(params, rows, targets):
    num_rows, num_targets = len(rows['encoder_input_tokens']), len(targets)
    repeated = {
      name: jnp.repeat(leaf, num_targets, axis=0) for name, leaf in rows.items()
    }
    targets = jnp.tile(targets, (num_rows, 1))
    logits = teacher_forced(params, config, repeated, targets)
    return jax.nn.log_softmax(logits).reshape(num_rows, num_targets, -1, 7)

  return log_probs


def next_log_probs(params, length):
  """Per row, beginning of an output -> log p of each next token."""
  outputs = list(itertools.product(range(7), repeat=length - 1))
  targets = np.array([(*output, 1) for output in outputs], np.int32)
  log_probs = np.asarray(all_log_probs_function(TINY)(params, ROWS, targets))
  return [
    {
      output[:t]: row[number, t]
      for number, output in enumerate(outputs)
      for t in range(length)
    }
    for row in log_probs
  ]


def strip(tokens):
  """An output up to its end token, or whole."""
  tokens = tuple(int(token) for token in tokens)
  return tokens[: tokens.index(1) + 1] if 1 in tokens else tokens


def replace_end_logit(monkeypatch, value):
  original = network.logits

  def logits(params, config, hidden):
    found = original(params, config, hidden)
    return jnp.where(jnp.arange(found.shape[-1]) == 1, value, found)

  monkeypatch.setattr(network, 'logits', logits)


def count_steps(monkeypatch):
  steps, original = [], cache.decode_step

  def step(*args, **options):
    jax.debug.callback(lambda: steps.append(1))
    return original(*args, **options)

  monkeypatch.setattr(cache, 'decode_step', step)
  return steps
