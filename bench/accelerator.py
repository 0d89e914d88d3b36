# SPDX-License-Identifier: Apache-2.0
"""python -m bench.accelerator: training or decoding on one accelerator.

Reads batches that `python -m bench.batches` wrote elsewhere, and needs jax,
flax, optax and numpy there: no TensorFlow, no vocabulary. Prints one JSON
object: seconds per step, model FLOP utilisation against this device's own
matrix products, what 10,000 steps would take, and where a step's time goes.
With --decode_rows it decodes so many rows greedily instead, and prints tokens
per second. With --compile_for=v5e it only compiles, for a TPU that need not be
there, and says what that took and what memory the program needs.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from bench import attentions, operation_times, programs, workload
from dsbs_jax.core import decoding, matmul_precision, network
from dsbs_jax.core.layers import dot_product_attention
from dsbs_jax.hardware import tpu_compiler
from dsbs_jax.runtime import device_specs

_PROFILED_RUNS = 4
_CHIPS_OF_A_HOST = 4  # where they are not there to be counted


def main() -> None:
  try:
    found = _measure(_parser().parse_args())
  except jax.errors.JaxRuntimeError as error:
    # Such as a program that needs more memory than there is.
    found = {'failed': str(error).splitlines()[0]}
  print(json.dumps(found, indent=1))


def _parser() -> argparse.ArgumentParser:
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
  made.add_argument(
    '--chips', type=int, default=1, help='That train data-parallel; 0: all.'
  )
  made.add_argument(
    '--compile_for',
    choices=[d.name for d in device_specs.DEVICES.values() if d.is_tpu],
    help='And not measure.',
  )
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


def _measure(arguments: argparse.Namespace) -> dict[str, object]:
  """All figures of one configuration."""
  jax.config.update('jax_default_matmul_precision', arguments.precision)
  if arguments.attention:
    way = attentions.WAYS[arguments.attention]
    dot_product_attention.dot_product_attention = (
      lambda query, key, value, *, bias, mask: way(
        query, key, value, bias, mask
      )
    )
  data = workload.load(arguments.workload)
  config = workload.configured(arguments)
  make = _decoder if arguments.decode_rows else _trainer
  started = time.perf_counter()
  # Compiles, and holds no memory yet.
  start, needed_bytes, figures = make(arguments, data, config)
  compiling = time.perf_counter() - started
  needed = {'compile_seconds': compiling, 'compiled_bytes': needed_bytes}
  if arguments.wait:
    arguments.wait.touch()
  if arguments.compile_for:
    return needed
  if arguments.wait:
    sys.stdin.readline()
  run = start()
  for number in range(data.num_steps):
    outputs = run(number)
  jax.block_until_ready(outputs)
  seconds = _seconds_per_run(run, arguments.steps)
  memory = jax.devices()[0].memory_stats() or {}
  return {
    'device': str(jax.devices()[0].device_kind),
    'jax': jax.__version__,
    'configuration': vars(arguments) | {'wait': None},
    **needed,
    'seconds_per_step': seconds,
    'peak_bytes': memory.get('peak_bytes_in_use'),
    **figures(seconds, outputs),
    **operation_times.profile(run, _PROFILED_RUNS),
  }


def _devices(arguments) -> list[jax.Device]:
  """The chips that compute, or are compiled for."""
  if arguments.compile_for:
    kind = device_specs.device(arguments.compile_for)
    return tpu_compiler.devices(kind, arguments.chips or _CHIPS_OF_A_HOST)
  return jax.local_devices()[: arguments.chips or None]


def _trainer(arguments, data, config):
  """Compiles the train step, for every shape of a batch.

  Of several chips each gets a batch of its own, the same.

  Returns:
    start: () -> (batch number) -> metrics of one optimizer step.
    needed_bytes: that the largest of its programs needs at once.
    figures: seconds of a step and its metrics -> JSON values.
  """
  chips = _devices(arguments)
  init, step = programs.train_step(
    config,
    chunk_tokens=arguments.chunk_tokens,
    join_views=bool(arguments.join_views),
    devices=chips,
  )
  batches = [
    jax.tree.map(
      lambda array: np.concatenate([array] * len(chips)),
      data.batch(arguments.layout, number),
    )
    for number in range(data.num_steps)
  ]
  init = init.lower()
  shapes, init, compiled = init.out_info, init.compile(), {}
  for batch in batches:
    if _shapes(batch) not in compiled:
      compiled[_shapes(batch)] = step.lower(shapes, batch).compile()

  def start():
    state = init()
    on_device = [
      jax.device_put(batch, compiled[_shapes(batch)].input_shardings[0][1])
      for batch in batches
    ]

    def run(number):
      nonlocal state
      batch = on_device[number % len(on_device)]
      state, metrics = compiled[_shapes(batch)](state, batch)
      return metrics

    return run

  def figures(seconds, metrics):
    rates = _rates(arguments, data, config, seconds)
    return {'loss': float(metrics['loss']), **rates}

  return start, max(map(_needed_bytes, compiled.values())), figures


def _rates(arguments, data, config, seconds: float) -> dict[str, object]:
  """Speed of a train step, and its share of what the chips can do."""
  chips = _devices(arguments)
  numbers = range(data.num_steps)
  useful = statistics.mean(data.useful_flops(config, n) for n in numbers)
  laid = statistics.mean(
    data.laid_flops(config, arguments.layout, n) for n in numbers
  )
  ceiling = _product_rate(arguments.dtype, arguments.product_size)
  peak = device_specs.peak_flops(chips[0].device_kind, arguments.dtype)
  pairs = len(chips) * data.facts['batch_size']
  return {
    'chips': len(chips),
    'pairs_per_step': pairs,
    'pairs_per_second': pairs / seconds,
    'product_tflops': ceiling / 1e12,
    'mfu': peak and useful / seconds / peak,
    'utilisation_useful': useful / seconds / ceiling,
    'utilisation_with_padding': laid / seconds / ceiling,
    'minutes_for_10000_steps': programs.NUM_STEPS * seconds / 60,
  }


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


def _decoder(arguments, data, config):
  """Compiles greedy decoding of label inputs; as `_trainer`."""
  inputs = np.concatenate(
    [
      data.batch('padded', n)['label']['encoder_input_tokens']
      for n in range(data.num_steps)
    ]
  )
  shape = arguments.decode_rows, inputs.shape[1]
  rows = {'encoder_input_tokens': np.resize(inputs, shape)}
  chip = jax.sharding.SingleDeviceSharding(_devices(arguments)[0])
  greedy = jax.jit(
    lambda params, rows: decoding.greedy(
      params, config, rows, max_decode_len=arguments.decode_len
    )
  )
  greedy = greedy.lower(
    *jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip),
      (network.param_shapes(config), rows),
    )
  ).compile()

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

  return start, _needed_bytes(greedy), figures


def _seconds_per_run(run, times: int) -> float:
  """Mean of many runs, one behind the other."""
  started = time.perf_counter()
  for number in range(times):
    outputs = run(number)
  jax.block_until_ready(outputs)
  return (time.perf_counter() - started) / times


def _product_rate(dtype: str, size: int) -> float:
  """FLOP/s of square matrix products on this device, float32 as it is set."""
  # Random numbers: chips multiply zeros and constants faster.
  matrix = jax.random.normal(jax.random.key(0), (size, size)) / size**0.5
  matrix = matrix.astype(dtype)
  times, precision = 20, matmul_precision.of(matrix.dtype)

  @jax.jit
  def power(matrix):
    result = matrix
    for _ in range(times):
      result = jnp.matmul(result, matrix, precision=precision)
    return result

  power(matrix).block_until_ready()
  return 2 * size**3 * times / _seconds_per_run(lambda _: power(matrix), 3)


if __name__ == '__main__':
  main()
