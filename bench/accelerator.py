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
import pathlib
import re
import statistics
import sys
import tempfile
import time

import jax
import numpy as np

from bench import attentions, programs, workload
from dsbs_jax.core import decoding, network
from dsbs_jax.core.layers import dot_product_attention

_PROFILED_RUNS = 4


def main() -> None:
  print(json.dumps(measure(parser().parse_args()), indent=1))


def parser() -> argparse.ArgumentParser:
  made = workload.parser(
    __doc__.splitlines()[0], model='base', dtype='bfloat16'
  )
  made.add_argument(
    '--precision', help='Of float32 products, such as highest; default: JAX.'
  )
  made.add_argument(
    '--attention', choices=attentions.WAYS, help='In place of the usual one.'
  )
  made.add_argument('--join_views', type=int, default=1)
  made.add_argument('--decode_rows', type=int, default=0)
  made.add_argument('--decode_len', type=int, default=64)
  made.add_argument('--steps', type=int, default=200)
  made.add_argument('--product_size', type=int, default=8192)
  made.add_argument(
    '--wait',
    type=pathlib.Path,
    help='Made when all is compiled; then measure when a line is read.',
  )
  return made


def measure(arguments: argparse.Namespace) -> dict[str, object]:
  """All figures of one configuration."""
  jax.config.update('jax_default_matmul_precision', arguments.precision)
  if arguments.attention:
    dot_product_attention.dot_product_attention = _keywords(
      attentions.WAYS[arguments.attention]
    )
  data = workload.load(arguments.workload)
  config = workload.configured(arguments)
  make = decoder if arguments.decode_rows else trainer
  started = time.perf_counter()
  start, figures = make(arguments, data, config)  # compiles, holds no memory
  compiling = time.perf_counter() - started
  if arguments.wait:
    arguments.wait.touch()
    sys.stdin.readline()
  run = start()
  for number in range(data.num_steps):
    outputs = run(number)
  jax.block_until_ready(outputs)
  seconds = seconds_per_run(run, arguments.steps)
  memory = jax.devices()[0].memory_stats() or {}
  return {
    'device': str(jax.devices()[0].device_kind),
    'jax': jax.__version__,
    'configuration': vars(arguments) | {'wait': None},
    'compile_seconds': compiling,
    'seconds_per_step': seconds,
    'peak_bytes': memory.get('peak_bytes_in_use'),
    **figures(seconds, outputs),
    **profile(run, _PROFILED_RUNS),
  }


def _keywords(attention):
  """As `dot_product_attention.dot_product_attention` is called."""
  return lambda query, key, value, *, bias, mask: attention(
    query, key, value, bias, mask
  )


def trainer(arguments, data, config):
  """Compiles the train step, for every shape of a batch.

  Returns:
    start: () -> (batch number) -> metrics of one optimizer step.
    figures: seconds of a step and its metrics -> JSON values.
  """
  init, step = programs.train_programs(
    config,
    chunk_tokens=arguments.chunk_tokens,
    join_views=bool(arguments.join_views),
  )
  numbers = range(data.num_steps)
  batches = [data.batch(arguments.layout, n) for n in numbers]
  init = init.lower()
  shapes, init, compiled = init.out_info, init.compile(), {}
  for batch in batches:
    if _shapes(batch) not in compiled:
      lowered = step.lower(shapes, batch)
      compiled[_shapes(batch)] = lowered.compile()

  def start():
    state = init()
    on_device = [jax.device_put(batch) for batch in batches]

    def run(number):
      nonlocal state
      batch = on_device[number % len(on_device)]
      state, metrics = compiled[_shapes(batch)](state, batch)
      return metrics

    return run

  def figures(seconds, metrics):
    ceiling = product_rate(arguments.dtype, arguments.product_size)
    useful = statistics.mean(data.useful_flops(config, n) for n in numbers)
    laid = statistics.mean(
      data.laid_flops(config, arguments.layout, n) for n in numbers
    )
    return {
      'pairs_per_step': data.facts['batch_size'],
      'pairs_per_second': data.facts['batch_size'] / seconds,
      'loss': float(metrics['loss']),
      'compiled_bytes': max(map(_needed_bytes, compiled.values())),
      'product_tflops': ceiling / 1e12,
      'utilisation_useful': useful / seconds / ceiling,
      'utilisation_with_padding': laid / seconds / ceiling,
      'minutes_for_10000_steps': programs.NUM_STEPS * seconds / 60,
    }

  return start, figures


def _shapes(batch) -> tuple:
  return tuple(array.shape for array in jax.tree.leaves(batch))


def _needed_bytes(program: jax.stages.Compiled) -> int:
  """What its compiler says that a program needs at once."""
  sizes = program.memory_analysis()
  return (
    sizes.argument_size_in_bytes
    + sizes.output_size_in_bytes
    - sizes.alias_size_in_bytes
    + sizes.temp_size_in_bytes
  )


def decoder(arguments, data, config):
  """Compiles greedy decoding of label inputs; as `trainer`."""
  inputs = np.concatenate(
    [
      data.batch('padded', n)['label']['encoder_input_tokens']
      for n in range(data.num_steps)
    ]
  )
  shape = arguments.decode_rows, inputs.shape[1]
  rows = {'encoder_input_tokens': np.resize(inputs, shape)}
  greedy = jax.jit(
    lambda params, rows: decoding.greedy(
      params, config, rows, max_decode_len=arguments.decode_len
    )
  )
  greedy = greedy.lower(network.param_shapes(config), rows).compile()

  def start():
    params = programs.endless_params(config)
    on_device = jax.device_put(rows)
    return lambda _: greedy(params, on_device)

  def figures(seconds, tokens):
    number = int((tokens > 0).sum())
    return {
      'rows': shape,
      'tokens_per_run': number,
      'tokens_per_second': number / seconds,
    }

  return start, figures


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


def profile(run, times: int) -> dict[str, object]:
  """Where a run's time goes, by a trace of some: milliseconds per run."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for number in range(times):
        outputs = run(number)
      jax.block_until_ready(outputs)
    (path,) = glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)
    totals, kinds = operation_times(path)

  def milliseconds(counter, most=None):
    return {
      name: nanoseconds / 1e6 / times
      for name, nanoseconds in counter.most_common(most)
    }

  return {
    'operations_milliseconds': sum(totals.values()) / 1e6 / times,
    'kinds_milliseconds': milliseconds(kinds),
    'top_ten_milliseconds': milliseconds(totals, 10),
  }


def operation_times(
  path: str,
) -> tuple[collections.Counter[str], collections.Counter[str]]:
  """Nanoseconds by operation, and by kind of operation.

  On a GPU by kernels of one kind, a name without its number: a step runs
  thousands, and those in a CUDA graph do not say which operation they are.
  """
  planes = list(jax.profiler.ProfileData.from_file(path).planes)
  planes = [p for p in planes if p.name.startswith('/device:')] or planes
  times: collections.Counter[str] = collections.Counter()
  kinds: collections.Counter[str] = collections.Counter()
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
        kinds[kind_of(name)] += event.duration_ns
  return times, kinds


def kind_of(operation: str) -> str:
  """What an operation or kernel does, by its name."""
  for kind, pattern in (
    ('attention', 'cudnn|fmha|sdpa|flash'),
    ('products', 'gemm|nvjet|cutlass|dot|matmul|convolution'),
    ('reductions', 'reduce|softmax'),
    ('gathers and scatters', 'gather|scatter'),
    ('copies', 'copy|memcpy|memset|concatenate|transpose|pad|slice|broadcast'),
  ):
    if re.search(pattern, operation, re.IGNORECASE):
      return kind
  return 'elementwise'


if __name__ == '__main__':
  main()
