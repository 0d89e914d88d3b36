# SPDX-License-Identifier: Apache-2.0
"""python -m bench.accelerator: training or decoding on one accelerator.

Reads batches that `python -m bench.batches` wrote elsewhere, and needs jax,
flax, optax and numpy there: no TensorFlow, no vocabulary. Prints one JSON
object: seconds per step, model FLOP utilisation against this device's own
matrix products, what 10,000 steps would take, and where a step's time goes.
With --decode_rows it decodes so many rows greedily instead, and prints tokens
per second.
"""

import argparse
import collections
import dataclasses
import glob
import json
import re
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from bench import workload
from dsbs_jax import contract
from dsbs_jax.core import decoding, objective, optimizer, steps
from dsbs_jax.core.t5 import network

PAPER_STEPS = 10_000
_PROFILED_RUNS = 4


def main() -> None:
  print(json.dumps(measure(parser().parse_args()), indent=1))


def parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workload', required=True)
  parser.add_argument('--vocab_size', type=int, default=32128)
  parser.add_argument('--model', default='base')
  parser.add_argument('--layout', default='packed')
  parser.add_argument('--dtype', default='bfloat16')
  parser.add_argument(
    '--precision', help='Of float32 products, such as highest; default: JAX.'
  )
  parser.add_argument('--remat', default='none')
  parser.add_argument('--dropout', type=float, default=0.1)
  parser.add_argument('--chunk_tokens', type=int, default=0)
  parser.add_argument('--scan_layers', action='store_true')
  parser.add_argument('--decode_rows', type=int, default=0)
  parser.add_argument('--decode_len', type=int, default=64)
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--product_size', type=int, default=8192)
  return parser


def measure(arguments: argparse.Namespace) -> dict[str, object]:
  """All figures of one configuration."""
  jax.config.update('jax_default_matmul_precision', arguments.precision)
  data = workload.load(arguments.workload)
  config = workload.model(
    arguments.model,
    vocab_size=arguments.vocab_size,
    dropout_rate=arguments.dropout,
    dtype=arguments.dtype,
    remat=arguments.remat,
    scan_layers=arguments.scan_layers,
  )
  make = decoder if arguments.decode_rows else trainer
  run, figures = make(arguments, data, config)
  started = time.perf_counter()
  for number in range(data.num_steps):  # all shapes that occur
    outputs = run(number)
  jax.block_until_ready(outputs)
  compiling = time.perf_counter() - started
  seconds = seconds_per_run(run, arguments.steps)
  memory = jax.devices()[0].memory_stats() or {}
  return {
    'device': str(jax.devices()[0].device_kind),
    'jax': jax.__version__,
    'configuration': vars(arguments),
    'compile_and_first_steps_seconds': compiling,
    'seconds_per_step': seconds,
    'peak_bytes': memory.get('peak_bytes_in_use'),
    **figures(seconds),
    'top_ten_milliseconds_per_step': profile(run, _PROFILED_RUNS),
  }


def trainer(arguments, data, config):
  """(batch number) -> one optimizer step; seconds of one -> its figures."""
  transformation = optimizer.adamw_hf(
    optimizer.linear_decay(total_steps=PAPER_STEPS)
  )
  init = jax.jit(lambda params: steps.state_from_params(params, transformation))
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
  numbers = range(data.num_steps)
  batches = [jax.device_put(data.batch(arguments.layout, n)) for n in numbers]
  state, metrics = init(random_params(config)), {}

  def run(number):
    nonlocal state, metrics
    state, metrics = step(state, batches[number % len(batches)])
    return metrics

  def figures(seconds):
    ceiling = product_rate(arguments.dtype, arguments.product_size)
    useful = statistics.mean(data.useful_flops(config, n) for n in numbers)
    laid = statistics.mean(
      data.laid_flops(config, arguments.layout, n) for n in numbers
    )
    return {
      'pairs_per_step': data.facts['batch_size'],
      'pairs_per_second': data.facts['batch_size'] / seconds,
      'loss': float(metrics['loss']),
      'product_tflops': ceiling / 1e12,
      'utilisation_useful': useful / seconds / ceiling,
      'utilisation_with_padding': laid / seconds / ceiling,
      'minutes_for_10000_steps': PAPER_STEPS * seconds / 60,
    }

  return run, figures


def decoder(arguments, data, config):
  """(ignored) -> greedy outputs of label inputs; seconds of one -> figures."""
  inputs = np.concatenate(
    [
      data.batch('padded', n)['label']['encoder_input_tokens']
      for n in range(data.num_steps)
    ]
  )
  shape = arguments.decode_rows, inputs.shape[1]
  rows = {'encoder_input_tokens': jnp.array(np.resize(inputs, shape))}
  params = random_params(config)
  kernel = params['decoder']['logits_dense']['kernel']
  # Some other token always exceeds 0: no row ends before the limit.
  kernel = kernel.at[:, : contract.EOS_ID + 1].set(0.0)
  params['decoder']['logits_dense']['kernel'] = kernel
  greedy = jax.jit(
    lambda params, rows: decoding.greedy(
      params, config, rows, max_decode_len=arguments.decode_len
    )
  )

  def figures(seconds):
    tokens = int((greedy(params, rows) > 0).sum())
    return {
      'rows': shape,
      'tokens_per_run': tokens,
      'tokens_per_second': tokens / seconds,
    }

  return lambda _: greedy(params, rows), figures


def random_params(config: network.T5Config) -> dict:
  """Initial parameters, cut into layers by a program of its own.

  In one program XLA's GPU backend draws a kernel again for each layer's part of
  it, and compiles for minutes.
  """
  stacked = dataclasses.replace(config, scan_layers=True)
  params = jax.jit(lambda key: network.init(key, stacked))(jax.random.key(0))
  if config.scan_layers:
    return params
  return jax.jit(lambda params: network.unstack_layers(params, config))(params)


def seconds_per_run(run, times: int) -> float:
  """Mean of many runs, one behind the other."""
  started = time.perf_counter()
  for number in range(times):
    outputs = run(number)
  jax.block_until_ready(outputs)
  return (time.perf_counter() - started) / times


def product_rate(dtype: str, size: int) -> float:
  """FLOP/s of square matrix products on this device."""
  # Random numbers: chips multiply zeros and constants faster.
  matrix = jax.random.normal(jax.random.key(0), (size, size)) / size**0.5
  matrix = matrix.astype(dtype)
  times = 20

  @jax.jit
  def power(matrix):
    result = matrix
    for _ in range(times):
      result = result @ matrix
    return result

  power(matrix).block_until_ready()
  return 2 * size**3 * times / seconds_per_run(lambda _: power(matrix), 3)


def profile(run, times: int) -> dict[str, float]:
  """The ten most expensive operations, in milliseconds per run."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for number in range(times):
        outputs = run(number)
      jax.block_until_ready(outputs)
    (path,) = glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)
    totals = operation_times(path)
  return {
    name: nanoseconds / 1e6 / times
    for name, nanoseconds in totals.most_common(10)
  }


def operation_times(path: str) -> collections.Counter[str]:
  """Nanoseconds by operation.

  On a GPU by kernels of one kind, a name without its number: a step runs
  thousands, and those in a CUDA graph do not say which operation they are.
  """
  planes = list(jax.profiler.ProfileData.from_file(path).planes)
  planes = [p for p in planes if p.name.startswith('/device:')] or planes
  times: collections.Counter[str] = collections.Counter()
  for plane in planes:
    for line in plane.lines:
      for event in line.events:
        named = dict(event.stats)
        if 'hlo_op' not in named:
          continue
        name = str(named['hlo_op'])
        if 'GPU' in plane.name:
          name = re.sub(r'[._]\d+$', '', event.name)
        times[name] += event.duration_ns
  return times


if __name__ == '__main__':
  main()
