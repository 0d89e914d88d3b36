# SPDX-License-Identifier: Apache-2.0
"""What the T5X tests share; they skip where T5X cannot be imported."""

import json
import pathlib
import types

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TREES = json.loads(
  (REPOSITORY / 'tests' / 'core' / 't5' / 'parameter_tree.json').read_text()
)
SIZE = {
  'vocab_size': 384,
  'emb_dim': 128,
  'num_heads': 4,
  'head_dim': 32,
  'mlp_dim': 256,
  'num_encoder_layers': 2,
  'num_decoder_layers': 2,
}


def pytest_collection_modifyitems(items):
  """Skips everything in this folder without T5X, and says how to get it."""
  try:
    import t5x.models  # noqa: F401
  except ImportError as error:
    reason = f'T5X cannot be imported ({error}): make t5x, see docs/t5x.md'
    for item in items:
      if pathlib.Path(__file__).parent in item.path.parents:
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope='session')
def trees():
  """The golden parameter trees, by size."""
  return TREES


@pytest.fixture(scope='session')
def parts():
  """T5X's model, partitioner and state of the tests' small network."""
  import flax
  import jax
  import seqio
  from t5x import partitioning, utils
  from t5x.examples.t5 import network as t5x_network

  from dsbs_jax.core import network, objective
  from dsbs_jax.interop import t5x_decoding, t5x_model

  variants = {
    'gated': {'mlp_activations': ('gelu', 'linear')},
    'tied': {'mlp_activations': ('relu',), 'logits_via_embedding': True},
  }

  def model(
    optimizer_def, *, alpha=0.5, variant='gated', decode_fn=None, **further
  ):
    config = t5x_network.T5Config(
      **SIZE, **variants[variant], dtype='float32', dropout_rate=0.0
    )
    vocabulary = seqio.ByteVocabulary()
    return t5x_model.DistillationModel(
      objective=objective.Distillation(alpha=alpha, **further),
      module=t5x_network.Transformer(config=config),
      input_vocabulary=vocabulary,
      output_vocabulary=vocabulary,
      optimizer_def=optimizer_def,
      decode_fn=decode_fn or t5x_decoding.decode,
    )

  def partitioner(*, model_devices=1):
    return partitioning.PjitPartitioner(
      num_partitions=None, model_parallel_submesh=(1, model_devices)
    )

  def initializer(made, mesh, batch_shape=(4, 16)):
    shapes = dict.fromkeys(
      (
        'encoder_input_tokens',
        'decoder_input_tokens',
        'decoder_target_tokens',
      ),
      batch_shape,
    )
    return utils.TrainStateInitializer(
      made.optimizer_def, made.get_initial_variables, shapes, mesh
    )

  def config(variant='gated'):
    return network.T5Config(**SIZE, **variants[variant], dropout_rate=0.0)

  def to_numpy(tree):
    return jax.device_get(flax.core.unfreeze(tree))

  return types.SimpleNamespace(
    model=model,
    partitioner=partitioner,
    initializer=initializer,
    config=config,
    to_numpy=to_numpy,
  )


@pytest.fixture(scope='session')
def cqa(shared_dir, tmp_path_factory):
  """CommonsenseQA with PaLM's outputs, prepared, and a small vocabulary."""
  from dsbs_jax.preparing import prepare

  data_dir = tmp_path_factory.mktemp('cqa')
  vocabulary = shared_dir / 'golden' / 'original' / 'tiny.4k.model'
  prepare.prepare(
    prepare.PrepareConfig(
      benchmark='cqa',
      source=str(shared_dir / 'data' / 'datasets'),
      data_dir=str(data_dir),
    )
  )
  return types.SimpleNamespace(
    data_dir=str(data_dir), vocabulary=str(vocabulary)
  )
