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
import glob
import json
import re
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from bench import programs, workload
from dsbs_jax.core import decoding

_PROFILED_RUNS = 4


def main() -> None:
  print(json.dumps(measure(parser().parse_args()), indent=1))


def parser() -> argparse.ArgumentParser:
  made = workload.parser(
    __doc__.splitlines()[0], model='base', dtype='bfloat16', decode_len=64
  )
  made.add_argument(
    '--precision', help='Of float32 products, such as highest; default: JAX.'
  )
  made.add_argument('--decode_rows', type=int, default=0)
  made.add_argument('--steps', type=int, default=200)
  made.add_argument('--product_size', type=int, default=8192)
  return made


def measure(arguments: argparse.Namespace) -> dict[str, object]:
  """All figures of one configuration."""
  jax.config.update('jax_default_matmul_precision', arguments.precision)
  data = workload.load(arguments.workload)
  config = workload.configured(arguments)
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
  state, step = programs.train_step(config, chunk_tokens=arguments.chunk_tokens)
  numbers = range(data.num_steps)
  batches = [jax.device_put(data.batch(arguments.layout, n)) for n in numbers]
  metrics = {}

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
      'minutes_for_10000_steps': programs.NUM_STEPS * seconds / 60,
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
  params = programs.endless_params(config)
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
