# SPDX-License-Identifier: Apache-2.0
"""What partitioning costs: the same step over 1 to 8 simulated devices.

Simulated devices share the machine's cores, so nothing gets faster; what is
seen is the price of cutting the work up: collectives and smaller products.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator

from bench import table

MESHES = ('1x1', '2x1', '4x1', '8x1', '4x2', '2x4')


def scaling(path, vocab_size: int, *, rounds: int = 3) -> Iterator[table.Row]:
  """Seconds per step by mesh."""
  seconds: dict[str, list[float]] = {mesh: [] for mesh in MESHES}
  for _ in range(rounds):
    for mesh in MESHES:
      seconds[mesh].append(_seconds(path, vocab_size, mesh))
  for mesh, values in seconds.items():
    yield table.row(
      'Simulated devices (data x model) on the same cores, T5 tiny',
      mesh,
      values,
      's/step',
      others=seconds['1x1'],
      against='1x1',
    )


def _seconds(path, vocab_size, mesh) -> float:
  number = 1
  for size in mesh.split('x'):
    number *= int(size)
  flags = os.environ.get('XLA_FLAGS', '')
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'bench.devices', f'--workload={path}'),
      *(f'--vocab_size={vocab_size}', f'--mesh={mesh}'),
    ],
    env=os.environ
    | {'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count={number}'},
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
  import time

  import jax
  import numpy as np

  from bench import workload
  from dsbs_jax.core import objective, optimizer, partitioning, steps
  from dsbs_jax.runtime import compilation_cache, malloc

  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workload', required=True)
  parser.add_argument('--vocab_size', type=int, required=True)
  parser.add_argument('--mesh', required=True)
  arguments = parser.parse_args()
  malloc.keep_freed_memory()
  compilation_cache.use_cache()
  data = workload.load(arguments.workload)
  config = workload.model(
    'tiny', vocab_size=arguments.vocab_size, dropout_rate=0.1
  )
  transformation = optimizer.adamw_hf(
    optimizer.linear_decay(total_steps=10_000)
  )

  def init(key):
    return steps.init_state(key, config, transformation)

  mesh = partitioning.make_mesh(arguments.mesh)
  shardings = partitioning.state_shardings(
    jax.eval_shape(init, jax.random.key(0)),
    mesh,
    partitioning.standard_rules(),
  )
  rows = partitioning.batch_sharding(mesh)
  state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
  step = jax.jit(
    steps.make_train_step(
      config,
      objective.Distillation(),
      transformation,
      run_key=jax.random.key(1),
    ),
    in_shardings=(shardings, rows),
    out_shardings=(shardings, None),
    donate_argnums=0,
  )
  batch = jax.tree.map(_divisible, data.batch('whole rows', 0))
  batch = jax.device_put(batch, rows)
  seconds = []
  for _ in range(7):
    started = time.perf_counter()
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    seconds.append(time.perf_counter() - started)
  print(json.dumps(float(np.median(seconds[2:]))))


def _divisible(array):
  """Rows up to the next multiple of 8, the same work for every mesh."""
  import numpy as np

  missing = -len(array) % 8
  return np.pad(array, ((0, missing), (0, 0)))


if __name__ == '__main__':
  main()
