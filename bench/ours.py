# SPDX-License-Identifier: Apache-2.0
"""python -m bench.ours: a worker that computes what this project computes."""

import argparse
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bench import programs, worker, workload
from dsbs_jax.core import network, objective, optimizer, partitioning
from dsbs_jax.core.layers import dot_product_attention, unpadding
from dsbs_jax.core.losses import weighted_loss
from dsbs_jax.inference.backends import decode_functions
from dsbs_jax.runtime import compilation_cache, malloc


def main() -> None:
  arguments = _parse()
  if arguments.mesh:
    number = math.prod(partitioning.mesh_sizes(arguments.mesh))
    jax.config.update('jax_num_cpu_devices', number)
  if arguments.keep_memory:
    malloc.keep_freed_memory()
  compilation_cache.use_cache()
  if arguments.no_scores:
    dot_product_attention.dot_product_attention = _no_scores
  config = workload.configured(arguments)
  if arguments.decode:
    worker.serve(_decoder(config), {'jax': jax.__version__})
    return
  data = workload.load(arguments.workload)
  ready = {'num_steps': data.num_steps}
  if arguments.part == 'products':
    worker.serve(_products(data, config), ready)
    return
  if arguments.part == 'step':
    measure, memory = _trainer(data, config, arguments)
    ready |= memory
  else:
    measure = _part(data, config, arguments)
  for number in range(data.num_steps):
    measure(str(number))
  worker.serve(measure, ready)


def _parse() -> argparse.Namespace:
  parser = workload.parser(__doc__)
  parser.add_argument(
    '--part',
    default='step',
    choices=('step', 'gradients', 'forward', 'products'),
  )
  parser.add_argument('--adafactor', action='store_true')
  parser.add_argument('--join_views', type=int, default=0)
  parser.add_argument('--no_scores', action='store_true')
  parser.add_argument(
    '--eigen', action='store_true', help='A train step without YNNPACK.'
  )
  parser.add_argument('--keep_memory', type=int, default=1)
  parser.add_argument('--mesh', help='Of simulated devices, such as 2x4.')
  return parser.parse_args()


def _trainer(data, config, arguments) -> tuple[Callable, dict]:
  """(batch number) -> one optimizer step; and what the program needs."""
  init, step = programs.train_step(
    config,
    make_optimizer=(
      optimizer.adafactor if arguments.adafactor else optimizer.adamw_hf
    ),
    chunk_tokens=arguments.chunk_tokens,
    mesh=arguments.mesh,
    join_views=bool(arguments.join_views),
    compiler_options=decode_functions.cpu_step_options()
    if arguments.eigen
    else {},
  )

  def batch(number):
    rows = data.batch(arguments.layout, number)
    if not arguments.mesh:
      return rows
    # Up to the next multiple of 8 rows: the same work for every mesh.
    return jax.tree.map(lambda a: np.pad(a, ((0, -len(a) % 8), (0, 0))), rows)

  state = init()
  sizes = step.lower(state, batch(0)).compile().memory_analysis()

  def measure(request):
    nonlocal state
    state, metrics = step(state, batch(int(request)))
    return {'loss': float(metrics['loss'])}

  return measure, {
    'argument_bytes': sizes.argument_size_in_bytes,
    'temporary_bytes': sizes.temp_size_in_bytes,
  }


def _part(data, config, arguments) -> Callable:
  """(batch number) -> its gradients, or only its loss."""
  params = programs.endless_params(config)
  key = jax.random.key(1) if config.dropout_rate else None

  def loss(params, batch):
    counts = weighted_loss.token_counts(objective.Distillation(), batch)
    total = 0.0
    for rows in batch.values():
      hidden = network.hidden(params, config, rows, dropout_key=key)
      rows = unpadding.unpad_targets(rows)
      total += weighted_loss.rows_loss(
        objective.Distillation(),
        hidden,
        rows,
        counts=counts,
        logits_fn=lambda p, h: network.logits(p, config, h),
        logits_params=params,
      )[0]
    return total

  compute = jax.jit(jax.grad(loss) if arguments.part == 'gradients' else loss)

  def measure(request):
    batch = data.batch(arguments.layout, int(request))
    jax.block_until_ready(compute(params, batch))

  return measure


def _decoder(config) -> Callable:
  """(length) -> greedy outputs of so many tokens."""
  params = programs.endless_params(config)
  rows = {'encoder_input_tokens': workload.rows_to_decode(config.vocab_size)}
  mesh = partitioning.make_mesh('1x1', devices=jax.devices()[:1])

  def measure(request):
    greedy = decode_functions.jit_decode(
      config, mesh, max_decode_len=int(request)
    )
    tokens = greedy(params, rows)
    assert np.all(tokens > 0), 'a row ended early'
    return {'rows': len(tokens)}

  return measure


def _no_scores(query, key, value, *, bias, mask):
  """What attention would cost without pairs: queries, keys, values are used."""
  del bias, mask
  return query + jnp.sum(key + value, axis=2, keepdims=True)


def _products(data, config) -> Callable:
  """(batch number) -> as many large products as its step has useful FLOPs."""
  size = 2048
  matrix = jnp.ones((size, size))
  multiply = jax.jit(jnp.matmul)

  def measure(request):
    flops = data.useful_flops(config, int(request))
    for _ in range(round(flops / (2 * size**3))):
      multiply(matrix, matrix).block_until_ready()

  return measure


if __name__ == '__main__':
  main()
