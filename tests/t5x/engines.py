# SPDX-License-Identifier: Apache-2.0
"""Both engines on the same batches from the same parameters.

Run as a program it prints JSON: argv is a JSON object of `compare`'s
arguments. Simulated devices must be asked for before jax starts, hence the
extra process.
"""

import functools
import json
import pathlib
import sys
import tempfile

import flax
import jax
import numpy as np
import seqio
from t5x import partitioning as t5x_partitioning
from t5x import utils
from t5x.examples.t5 import network as t5x_network

from dsbs_jax.core import network, objective, optimizer, partitioning, steps
from dsbs_jax.data.batching import batch_order, layouts, loader
from dsbs_jax.data.prepared import tokens
from dsbs_jax.interop import (
  t5x_batches,
  t5x_model,
  t5x_optimizer,
  t5x_trainer,
)

SIZE = {
  'vocab_size': 4224,
  'emb_dim': 128,
  'num_heads': 4,
  'head_dim': 32,
  'mlp_dim': 256,
  'num_encoder_layers': 2,
  'num_decoder_layers': 2,
  'mlp_activations': ('gelu', 'linear'),
}
CONFIG = network.T5Config(**SIZE, dropout_rate=0.0)
DISTILLATION = objective.Distillation(alpha=0.4)
TERMS = ('label', 'rationale')
RATES = {'adamw_hf': 1e-3, 'adafactor': 1e-2}


@functools.cache
def initial_params():
  """The parameters from which both engines start."""
  init = jax.jit(lambda key: network.init(key, CONFIG))
  return jax.device_get(init(jax.random.key(7)))


def open_data(data_dir, vocabulary, *, packed, batch_size=8, row_multiple=1):
  """Real batches of cqa_gt_dsbs."""
  layout = layouts.Packed() if packed else layouts.Padded()
  return loader.open(
    'cqa_gt_dsbs',
    tokens.Source(data_dir, vocabulary),
    batch_order.BatchOrder(batch_size=batch_size),
    layout=layout,
    shard_info=loader.ShardInfo(row_multiple=row_multiple),
  )


def make_optimizer(name):
  """An optimizer of ours with a falling rate, as the engines build it."""
  rate = optimizer.linear_decay(RATES[name], total_steps=100)
  return getattr(optimizer, name)(rate, clip_norm=1.0)


def train_ours(data, name, params, *, num_steps, num_microbatches, mesh):
  """Yields (loss, {term: token mean}) of each step of the built-in engine."""
  transformation = make_optimizer(name)
  mesh = partitioning.make_mesh(mesh)
  state = steps.state_from_params(params, transformation)
  rules = partitioning.standard_rules()
  shardings = partitioning.state_shardings(
    jax.eval_shape(lambda: state), mesh, rules
  )
  rows = partitioning.batch_sharding(mesh)
  step = jax.jit(
    steps.make_train_step(
      CONFIG,
      DISTILLATION,
      transformation,
      run_key=jax.random.key(0),
      num_microbatches=num_microbatches,
    ),
    in_shardings=(shardings, rows),
    out_shardings=(shardings, None),
  )
  state = jax.device_put(state, shardings)
  for number in range(num_steps):
    state, metrics = step(state, data.batch(number))
    yield (
      float(metrics['loss']),
      {
        term: float(metrics[f'{term}/loss_sum'] / metrics[f'{term}/tokens'])
        for term in TERMS
      },
    )


def make_model(optimizer_def, *, alpha, task=None):
  """Our model over T5X's network."""
  vocabulary = seqio.ByteVocabulary()
  return t5x_model.DistillationModel(
    objective=objective.Distillation(alpha=alpha),
    task=task,
    module=t5x_network.Transformer(
      config=t5x_network.T5Config(**SIZE, dtype='float32', dropout_rate=0.0)
    ),
    input_vocabulary=vocabulary,
    output_vocabulary=vocabulary,
    optimizer_def=optimizer_def,
  )


def train_t5x(data, name, params, *, num_steps, num_microbatches, submesh):
  """Yields the same of T5X's trainer with our model, optimizer and batches."""
  wrapped = t5x_optimizer.OptaxOptimizer(make_optimizer(name))
  model = make_model(wrapped, alpha=DISTILLATION.alpha)
  partitioner = t5x_partitioning.PjitPartitioner(
    num_partitions=None, model_parallel_submesh=submesh
  )
  batch_size = len(data.positions(0))
  batches = utils.prepare_train_iter(
    t5x_batches.Iterator(data, num_rows=batch_size),
    partitioner=partitioner,
    checkpoint_cfg=None,
    data_layout=partitioner.get_data_layout(batch_size),
  )
  shapes = {key: spec.shape for key, spec in batches.element_spec.items()}
  initializer = utils.TrainStateInitializer(
    wrapped, model.get_initial_variables, shapes, partitioner
  )
  state = initializer.from_scratch(jax.random.PRNGKey(0))
  placed = jax.tree.map(
    lambda given, made: jax.device_put(given, made.sharding),
    params,
    flax.core.unfreeze(state.params),
  )
  with tempfile.TemporaryDirectory() as folder:
    trainer = t5x_trainer.Trainer(
      model=model,
      train_state=state.replace_params(flax.core.freeze(placed)),
      partitioner=partitioner,
      eval_names=[],
      summary_dir=folder,
      train_state_axes=initializer.train_state_axes,
      rng=jax.random.PRNGKey(1),
      learning_rate_fn=optimizer.linear_decay(RATES[name], total_steps=100),
      num_microbatches=num_microbatches,
    )
    with trainer:
      for number in range(num_steps):
        values = trainer.train(batches, 1, start_step=number).result()
        yield (
          float(values['loss'].value),
          {term: float(values[f'{term}/loss'].value) for term in TERMS},
        )


def compare(
  *,
  data_dir,
  vocabulary,
  name,
  packed,
  num_steps=20,
  num_microbatches=1,
  mesh='1x1',
  row_multiple=1,
):
  """Per step [our loss, label, rationale], and T5X's.

  Args:
    data_dir: prepared CommonsenseQA.
    vocabulary: its vocabulary.
    name: an optimizer of core/optimizer.py.
    packed: else padded.
    num_steps: steps.
    num_microbatches: of T5X; ours takes the whole batch at once.
    mesh: (data, model) devices.
    row_multiple: what the number of rows must divide by.

  Returns:
    {'ours': [...], 't5x': [...]}
  """
  params = initial_params()
  data = open_data(
    data_dir, vocabulary, packed=packed, row_multiple=row_multiple
  )
  model_devices = int(mesh.split('x')[1])
  found = {
    'ours': train_ours(
      data, name, params, num_steps=num_steps, num_microbatches=1, mesh=mesh
    ),
    't5x': train_t5x(
      data,
      name,
      params,
      num_steps=num_steps,
      num_microbatches=num_microbatches,
      submesh=(1, model_devices),
    ),
  }
  return {
    engine: [[loss, *terms.values()] for loss, terms in values]
    for engine, values in found.items()
  }


def worst(found):
  """The largest relative difference between two engines' figures."""
  ours, theirs = (np.asarray(values) for values in found)
  return float(np.max(np.abs(ours - theirs) / np.abs(ours)))


if __name__ == '__main__':
  arguments = json.loads(sys.argv[1])
  pathlib.Path(sys.argv[2]).write_text(json.dumps(compare(**arguments)))
