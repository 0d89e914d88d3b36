# SPDX-License-Identifier: Apache-2.0
"""python -m bench.accelerator: the training step on one accelerator.

Reads batches that `python -m bench.batches` wrote elsewhere, and needs jax,
flax, optax and numpy there: no TensorFlow, no vocabulary. Prints one JSON
object: seconds per step, model FLOP utilisation against this device's own
matrix products, what 10,000 steps would take, and where a step's time goes.
"""

import argparse
import collections
import functools
import glob
import json
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp

from bench import workload
from dsbs_jax.core import objective, optimizer, steps

PAPER_STEPS = 10_000


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workload', required=True)
  parser.add_argument('--vocab_size', type=int, default=32128)
  parser.add_argument('--model', default='base')
  parser.add_argument('--layout', default='packed')
  parser.add_argument('--dtype', default='bfloat16')
  parser.add_argument('--remat', default='none')
  parser.add_argument('--dropout', type=float, default=0.1)
  parser.add_argument('--chunk_tokens', type=int, default=0)
  parser.add_argument('--scan_layers', action='store_true')
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--product_size', type=int, default=8192)
  print(json.dumps(measure(parser.parse_args()), indent=1))


def measure(arguments: argparse.Namespace) -> dict[str, object]:
  """All figures of one configuration."""
  data = workload.load(arguments.workload)
  config = workload.model(
    arguments.model,
    vocab_size=arguments.vocab_size,
    dropout_rate=arguments.dropout,
    dtype=arguments.dtype,
    remat=arguments.remat,
    scan_layers=arguments.scan_layers,
  )
  transformation = optimizer.adamw_hf(
    optimizer.linear_decay(total_steps=PAPER_STEPS)
  )
  init = jax.jit(lambda key: steps.init_state(key, config, transformation))
  state = init(jax.random.key(0))
  step = jax.jit(
    steps.make_train_step(
      config,
      objective.Distillation(),
      transformation,
      run_key=jax.random.key(1),
      chunk_tokens=arguments.chunk_tokens,
    ),
    donate_argnums=0,
  )
  started = time.perf_counter()
  seen = [data.batch(arguments.layout, n) for n in range(data.num_steps)]
  for batch in seen:  # all shapes that occur
    state, metrics = step(state, batch)
  jax.block_until_ready(metrics)
  compiling = time.perf_counter() - started
  started = time.perf_counter()
  for number in range(arguments.steps):
    state, metrics = step(state, seen[number % len(seen)])
  loss = float(metrics['loss'])
  seconds = (time.perf_counter() - started) / arguments.steps
  ceiling = product_rate(arguments.dtype, arguments.product_size)
  numbers = range(data.num_steps)
  useful = statistics.mean(data.useful_flops(config, n) for n in numbers)
  laid = statistics.mean(
    data.laid_flops(config, arguments.layout, n) for n in numbers
  )
  state, top = profile(step, state, seen)
  memory = jax.devices()[0].memory_stats() or {}
  return {
    'device': str(jax.devices()[0].device_kind),
    'jax': jax.__version__,
    'configuration': vars(arguments),
    'pairs_per_step': data.facts['batch_size'],
    'compile_and_first_steps_seconds': compiling,
    'seconds_per_step': seconds,
    'pairs_per_second': data.facts['batch_size'] / seconds,
    'loss': loss,
    'product_tflops': ceiling / 1e12,
    'utilisation_useful': useful / seconds / ceiling,
    'utilisation_with_padding': laid / seconds / ceiling,
    'minutes_for_10000_steps': PAPER_STEPS * seconds / 60,
    'peak_bytes': memory.get('peak_bytes_in_use'),
    'top_ten_milliseconds_per_step': top,
  }


def product_rate(dtype: str, size: int) -> float:
  """FLOP/s of square matrix products on this device."""
  matrix = jnp.full((size, size), 1 / size, dtype)

  @functools.partial(jax.jit, static_argnames='times')
  def power(matrix, times):
    return jax.lax.fori_loop(0, times, lambda _, m: m @ matrix, matrix)

  times = 20
  power(matrix, times).block_until_ready()
  started = time.perf_counter()
  power(matrix, times).block_until_ready()
  return 2 * size**3 * times / (time.perf_counter() - started)


def profile(step, state, batches) -> tuple[object, dict[str, float]]:
  """The ten most expensive operations, in milliseconds per step."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for batch in batches:
        state, metrics = step(state, batch)
      jax.block_until_ready(metrics)
    (path,) = glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)
    times: collections.Counter[str] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(path).planes:
      for line in plane.lines:
        for event in line.events:
          named = dict(event.stats)
          if 'hlo_op' in named:
            times[str(named['hlo_op'])] += event.duration_ns
  return state, {
    name: nanoseconds / 1e6 / len(batches)
    for name, nanoseconds in times.most_common(10)
  }


if __name__ == '__main__':
  main()
