# SPDX-License-Identifier: Apache-2.0
"""python -m bench.ours: a worker that computes what this project computes."""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bench import worker, workload
from dsbs_jax.core import (
  decoding,
  dot_product_attention,
  objective,
  optimizer,
  partitioning,
  steps,
  unpadding,
)
from dsbs_jax.core.t5 import network
from dsbs_jax.data.batching import row_shapes
from dsbs_jax.inference import cpu_threads
from dsbs_jax.runtime import compilation_cache, malloc

DISTILLATION = objective.Distillation()
# Shares of a step: all of it, without the update, without the backward pass.
PARTS = ('step', 'gradients', 'forward')


def main() -> None:
  arguments = parse()
  if arguments.keep_memory:
    malloc.keep_freed_memory()
  compilation_cache.use_cache()
  if arguments.no_scores:
    dot_product_attention.dot_product_attention = _no_scores
  data = workload.load(arguments.workload)
  config = workload.model(
    arguments.model,
    vocab_size=arguments.vocab_size,
    dropout_rate=arguments.dropout,
    dtype=arguments.dtype,
    remat=arguments.remat,
  )
  ready = {'num_steps': data.num_steps}
  if arguments.decode_len:
    measure = decoder(data, config, arguments)
  elif arguments.part == 'step':
    measure, memory = trainer(data, config, arguments)
    ready |= memory
  else:
    measure = part(data, config, arguments)
  for number in range(data.num_steps):
    measure(str(number))
  worker.serve(measure, ready)


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workload', required=True)
  parser.add_argument('--vocab_size', type=int, required=True)
  parser.add_argument('--model', default='mini')
  parser.add_argument('--layout', default='packed')
  parser.add_argument('--part', default='step', choices=PARTS)
  parser.add_argument('--dropout', type=float, default=0.1)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--remat', default='none')
  parser.add_argument('--chunk_tokens', type=int, default=0)
  parser.add_argument('--adafactor', action='store_true')
  parser.add_argument('--no_scores', action='store_true')
  parser.add_argument('--keep_memory', type=int, default=1)
  parser.add_argument('--decode_len', type=int, default=0)
  parser.add_argument('--streams', type=int, help='One per core if not given.')
  return parser.parse_args()


def trainer(data, config, arguments) -> tuple[Callable, dict]:
  """(batch number) -> one optimizer step; and what the program needs."""
  make = optimizer.adafactor if arguments.adafactor else optimizer.adamw_hf
  transformation = make(
    optimizer.linear_decay(5e-5, total_steps=10_000), clip_norm=1.0
  )
  state = initial_state(config, transformation)
  step = jax.jit(
    steps.make_train_step(
      config,
      DISTILLATION,
      transformation,
      run_key=jax.random.key(1),
      chunk_tokens=arguments.chunk_tokens,
    ),
    donate_argnums=0,
  )
  compiled = step.lower(state, data.batch(arguments.layout, 0)).compile()
  sizes = compiled.memory_analysis()
  holder = [state]

  def measure(request):
    batch = data.batch(arguments.layout, int(request))
    holder[0], metrics = step(holder[0], batch)
    return {'loss': float(metrics['loss'])}

  return measure, {
    'argument_bytes': sizes.argument_size_in_bytes,
    'temporary_bytes': sizes.temp_size_in_bytes,
  }


def part(data, config, arguments) -> Callable:
  """(batch number) -> its gradients, or only its loss."""
  params = initial_state(config, optimizer.adamw_hf(0.0)).params
  key = jax.random.key(1) if config.dropout_rate else None

  def loss(params, batch):
    counts = objective.token_counts(batch)
    total = 0.0
    for rows in batch.values():
      hidden = network.hidden(params, config, rows, dropout_key=key)
      rows = unpadding.unpad_targets(rows)
      total += objective.rows_loss(
        DISTILLATION,
        hidden,
        rows,
        counts=counts,
        logits_fn=lambda p, h: network.logits(p, config, h),
        logits_params=params,
      )[0]
    return total

  compute = jax.grad(loss) if arguments.part == 'gradients' else loss
  compute = jax.jit(compute)

  def measure(request):
    batch = data.batch(arguments.layout, int(request))
    jax.block_until_ready(compute(params, batch))

  return measure


def decoder(data, config, arguments) -> Callable:
  """(batch number) -> greedy outputs for the inputs of the label task.

  Rows are as long as their longest, up to the next multiple of 8.
  """
  params = initial_state(config, optimizer.adamw_hf(0.0)).params
  greedy = cpu_threads.per_core(
    jax.jit(
      lambda params, rows: decoding.greedy(
        params, config, rows, max_decode_len=arguments.decode_len
      )
    ),
    partitioning.make_mesh('1x1', devices=jax.devices()[:1]),
    num_cores=arguments.streams,
  )

  def measure(request):
    rows = data.batch('bucketed', int(request))['label']
    tokens = rows['encoder_input_tokens']
    longest = np.flatnonzero(tokens.any(axis=0))[-1] + 1
    width = row_shapes.round_up(longest, row_shapes.MULTIPLE)
    rows = {'encoder_input_tokens': tokens[:, :width]}
    tokens = greedy(params, rows)
    return {'tokens': int((tokens > 0).sum())}

  return measure


def _no_scores(query, key, value, *, bias, mask):
  """What attention would cost without pairs: queries, keys, values are used."""
  del bias, mask
  return query + jnp.sum(key + value, axis=2, keepdims=True)


def initial_state(config, transformation) -> steps.TrainState:
  """Random parameters, and their optimizer.

  The logits of padding and end are 0, which some other token always exceeds:
  decoding goes on to its limit.
  """

  def init(key):
    params = network.init(key, config)
    kernel = params['decoder']['logits_dense']['kernel']
    params['decoder']['logits_dense']['kernel'] = kernel.at[:, :2].set(0.0)
    return steps.state_from_params(params, transformation)

  return jax.jit(init)(jax.random.key(0))


if __name__ == '__main__':
  main()
