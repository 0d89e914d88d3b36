# SPDX-License-Identifier: Apache-2.0
"""Figures of evaluation: what sorting, stopping and few tokens are worth."""

import functools
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from bench import table, workload
from dsbs_jax import contract
from dsbs_jax.core import decoding
from dsbs_jax.core.t5 import network
from dsbs_jax.data import register
from dsbs_jax.data.batching import loader
from dsbs_jax.data.prepared import tokens

_BATCH = 128


def evaluation(
  name: str,
  data_dir: str,
  vocabulary: str,
  vocab_size: int,
  *,
  rounds: int = 3,
  num_examples: int = 512,
) -> Iterator[table.Row]:
  """Examples per second of a validation split, by the ways to answer.

  The parameters are random and end no row early: decoding stops when all rows
  of a batch have ended, so its time is that of the longest answer.
  """
  source = register.source(data_dir=data_dir, vocabulary=vocabulary)
  data = tokens.load(name, 'validation', source)
  config = workload.model('mini', vocab_size=vocab_size, dropout_rate=0.0)
  params = jax.jit(lambda key: _params(key, config))(jax.random.key(0))

  def greedy(params, rows, *, length=64):
    return decoding.greedy(params, config, rows, max_decode_len=length)

  def beam(params, rows):
    return decoding.beam_search(
      params,
      config,
      rows,
      num_beams=4,
      max_decode_len=8,
    )[0]

  def options(params, rows):
    batch = len(rows['encoder_input_tokens'])
    choices = jnp.broadcast_to(
      jnp.array([[5, 6, 1], [7, 8, 1], [9, 1, 0], [10, 1, 0], [11, 12, 1]]),
      (batch, 5, 3),
    )
    return decoding.score_options(params, config, rows, options_tokens=choices)

  ways = {
    'file order, 64 tokens': (greedy, False),
    'sorted by length, 64 tokens': (greedy, True),
    'sorted by length, 8 tokens': (functools.partial(greedy, length=8), True),
    'sorted by length, 8 tokens, 4 beams': (beam, True),
    'sorted by length, 5 options of 3 tokens scored': (options, True),
  }
  rates = {way: [] for way in ways}
  programs = {way: jax.jit(function) for way, (function, _) in ways.items()}
  for number in range(rounds + 1):
    for way, (_, sort) in ways.items():
      batches = [
        {'encoder_input_tokens': rows['encoder_input_tokens']}
        for _, rows in _some(data, sort, num_examples)
      ]
      started = time.perf_counter()
      for rows in batches:
        np.asarray(programs[way](params, rows))
      seconds = time.perf_counter() - started
      if number:
        rates[way].append(len(batches) * _BATCH / seconds)
  against = next(iter(ways))
  for way, values in rates.items():
    yield table.row(
      f'Evaluation of {name}, batches of {_BATCH}',
      way,
      values,
      'examples/s',
      others=rates[against],
      against=against,
    )


def _some(data, sort, num_examples):
  """The first batches: the longest inputs where they are sorted."""
  batches = list(loader.eval_batches(data, _BATCH, sort=sort))
  middle = (len(batches) - num_examples // _BATCH) // 2
  return batches[max(0, middle) :][: num_examples // _BATCH]


def _params(key, config):
  """Random parameters that end no row before the limit (see bench.ours)."""
  params = network.init(key, config)
  kernel = params['decoder']['logits_dense']['kernel']
  kernel = kernel.at[:, : contract.EOS_ID + 1].set(0.0)
  params['decoder']['logits_dense']['kernel'] = kernel
  return params
