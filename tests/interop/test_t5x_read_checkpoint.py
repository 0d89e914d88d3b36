# SPDX-License-Identifier: Apache-2.0
"""T5X's two formats, in every layout of layers, without T5X."""

import dataclasses
import functools
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from flax import serialization, traverse_util

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.interop import (
  read_checkpoint,
  same_network,
  t5x_read_checkpoint,
  t5x_storage,
  t5x_write_checkpoint,
)
from tests import models

CONFIG = models.t5(
  vocab_size=256,
  emb_dim=32,
  head_dim=16,
  mlp_dim=48,
  num_encoder_layers=3,
  num_decoder_layers=2,
)
SAVERS = {
  'orbax': t5x_write_checkpoint.save,
  'legacy': functools.partial(t5x_write_checkpoint.save, legacy=True),
}


@pytest.fixture(scope='module')
def params():
  return draw(CONFIG)


def draw(config):
  """Random parameters, without compiling T5's own initialiser."""
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: random.standard_normal(leaf.shape, np.float32),
    network.param_shapes(config),
  )


def scalable(params):
  """An independent hand-made copy in scalable_t5's layout."""
  tree = {}
  for name, array in models.flat(params).items():
    parts = name.split('/')
    if 'layers_' not in name and 'relpos_bias' not in name:
      tree[name] = array
    elif parts[1] == 'layers_0' or 'relpos_bias' in name:
      stack = parts[0]
      count = CONFIG.num_layers(stack)
      rest = '/'.join(parts[2:] if 'layers_' in name else parts[1:])
      layers = [
        models.flat(params).get(f'{stack}/layers_{i}/{rest}', array)
        for i in range(count)
      ]
      if 'attention/' in rest and rest.endswith('kernel'):
        heads = (2, 16)
        out = rest.endswith('out/kernel')
        shape = (*heads, 32) if out else (32, *heads)
        layers = [layer.reshape(shape) for layer in layers]
      tree[f'{stack}/{stack}/{rest}'] = np.stack(layers, axis=1)
  return traverse_util.unflatten_dict(tree, sep='/')


def write_msgpack(folder, target, *, version=3, step=7):
  folder.mkdir(parents=True)
  contents = {
    'version': version,
    'optimizer': {'target': target, 'state': {'step': step}},
  }
  (folder / 'checkpoint').write_bytes(
    serialization.msgpack_serialize(jax.tree.map(np.asarray, contents))
  )


@pytest.mark.parametrize('saver', SAVERS)
@pytest.mark.parametrize('scanned', [False, True])
def test_what_is_written_is_read(tmp_path, params, saver, scanned):
  config = dataclasses.replace(CONFIG, scan_layers=scanned)
  given = network.stack_layers(params, CONFIG) if scanned else params
  SAVERS[saver](str(tmp_path), given, config, step=12)
  models.assert_equal(
    t5x_read_checkpoint.load_params(str(tmp_path), CONFIG), params
  )
  stacked = dataclasses.replace(CONFIG, scan_layers=True)
  models.assert_equal(
    t5x_read_checkpoint.load_params(str(tmp_path), stacked),
    network.stack_layers(params, CONFIG),
  )
  assert models.t5x_step(str(tmp_path)) == 12
  assert t5x_read_checkpoint.infer_config(str(tmp_path)) == CONFIG


def test_scanned_layers_of_scalable_t5(tmp_path, params):
  write_msgpack(tmp_path / 'checkpoint_7', scalable(params))
  path = str(tmp_path / 'checkpoint_7')
  models.assert_equal(t5x_read_checkpoint.load_params(path, CONFIG), params)
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(
      tmp_path / 'checkpoint_8' / 'state',
      {'target': scalable(params), 'state': {'step': np.int32(8)}},
    )
  models.assert_equal(
    t5x_read_checkpoint.load_params(str(tmp_path), CONFIG), params
  )


def test_layers_with_different_biases_are_refused(tmp_path, params):
  target = scalable(params)
  target['decoder']['decoder']['relpos_bias']['rel_embedding'][0, 1, 3] += 0.5
  write_msgpack(tmp_path / 'checkpoint_7', target)
  with pytest.raises(
    ValueError,
    match=r'decoder has a relative bias per layer'
    r'.*layer 1 differs from layer 0 by 0\.5',
  ):
    t5x_read_checkpoint.load_params(str(tmp_path), CONFIG)


def test_tables_per_layer_are_those_of_a_umt5(tmp_path):
  config = dataclasses.replace(CONFIG, relpos_bias_per_layer=True)
  params = draw(config)
  for place, scanned in (('unrolled', False), ('stacked', True)):
    layout = dataclasses.replace(config, scan_layers=scanned)
    given = network.stack_layers(params, config) if scanned else params
    t5x_write_checkpoint.save(str(tmp_path / place), given, layout, step=3)
    path = str(tmp_path / place)
    models.assert_equal(t5x_read_checkpoint.load_params(path, layout), given)
    assert t5x_read_checkpoint.infer_config(path) == config
  # As scalable_t5 keeps them.
  shared = draw(CONFIG)
  target = scalable(shared)
  for stack in ('encoder', 'decoder'):
    tables = [
      layer['relpos_bias']['rel_embedding']
      for name, layer in sorted(params[stack].items())
      if name.startswith('layers_')
    ]
    target[stack][stack]['relpos_bias']['rel_embedding'] = np.stack(tables, 1)
  write_msgpack(tmp_path / 'checkpoint_7', target)
  path = str(tmp_path / 'checkpoint_7')
  assert t5x_read_checkpoint.infer_config(path) == config
  found = models.flat(t5x_read_checkpoint.load_params(path, config))
  for name, array in models.flat(params).items():
    expected = array if 'relpos_bias' in name else models.flat(shared)[name]
    np.testing.assert_array_equal(found[name], expected, err_msg=name)


def test_floats_of_16_bits_and_float_steps(tmp_path, params):
  small = jax.tree.map(lambda x: np.asarray(x, ml_dtypes.bfloat16), params)
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(
      tmp_path / 'checkpoint_30' / 'state',
      {'target': small, 'state': {'step': np.float32(30)}},
    )
  loaded = t5x_read_checkpoint.load_params(str(tmp_path), CONFIG)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded))
  models.assert_equal(
    loaded, jax.tree.map(lambda x: x.astype(np.float32), small)
  )
  assert models.t5x_step(str(tmp_path)) == 30


def test_version_2_keeps_bfloat16_as_bits(tmp_path, params):
  """An index whose leaf is a zarr folder of uint16, as T5X wrote in 2021."""
  folder = tmp_path / 'checkpoint_1'
  target = jax.tree.map(np.asarray, params)
  scale = np.linspace(0, 2, 32).astype(ml_dtypes.bfloat16)
  spec = {
    'driver': 'zarr',
    'kvstore': {'driver': 'file', 'path': f'{folder}/a.scale/'},
    'metadata': {'dtype': '<u2', 'shape': [32], 'chunks': [32]},
  }
  tensorstore.open(spec, create=True).result().write(
    scale.view(np.uint16)
  ).result()
  target['encoder']['encoder_norm']['scale'] = {
    'driver': 'zarr',
    'kvstore': {'driver': 'gcs', 'bucket': 'x', 'path': 'a.scale'},
    'metadata': {},
  }
  contents = {
    'version': 2,
    'optimizer': {'target': target, 'state': {'step': 1}},
  }
  (folder / 'checkpoint').write_bytes(serialization.msgpack_serialize(contents))
  loaded = t5x_read_checkpoint.load_params(str(folder), CONFIG)
  np.testing.assert_array_equal(
    loaded['encoder']['encoder_norm']['scale'], scale.astype(np.float32)
  )


def test_only_the_wanted_part_of_an_array_is_read():
  reads = []

  def fetch(index):
    reads.append(index)
    return np.arange(24).reshape(2, 3, 4)[index]

  leaf = t5x_storage.Leaf((2, 3, 4), fetch).take(1, 2)
  assert leaf.shape == (2, 4)
  np.testing.assert_array_equal(leaf.read((slice(0, 1),)), [[8, 9, 10, 11]])
  assert reads == [(slice(0, 1), 2, slice(None))]


def test_each_device_gets_its_own_part(tmp_path, params):
  SAVERS['legacy'](str(tmp_path), params, CONFIG)
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('model',))
  rule = jax.sharding.PartitionSpec('model')
  shardings = jax.tree.map(
    lambda _: jax.sharding.NamedSharding(mesh, rule), params
  )
  loaded = read_checkpoint.load_params(
    str(tmp_path), CONFIG, shardings=shardings
  )
  models.assert_equal(loaded, params)
  leaf = loaded['token_embedder']['embedding']
  assert leaf.sharding.spec == rule


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'vocab_size': 384},
      r'vocabulary of 256 rows, the network has 384.*'
      r'expected \(384, 32\), found \(256, 32\).*Set VOCAB_SIZE',
    ),
    ({'mlp_dim': 64}, r'wi_0/kernel is \(32, 48\), expected \(32, 64\)'),
    ({'num_encoder_layers': 4}, r'lacks encoder/layers_3/.*number of layers'),
    ({'mlp_activations': ('relu',)}, r'mlp/wi/kernel.*T5 1\.0.*the other 1\.1'),
    ({'logits_via_embedding': True}, r'logits_dense.*LOGITS_VIA_EMBEDDING'),
  ],
)
def test_another_network_is_refused(tmp_path, params, change, message):
  t5x_write_checkpoint.save(str(tmp_path), params, CONFIG)
  with pytest.raises(ValueError, match=f'(?s){message}'):
    t5x_read_checkpoint.load_params(
      str(tmp_path), dataclasses.replace(CONFIG, **change)
    )


def test_paths(tmp_path, params):
  for step in (5, 40):
    t5x_write_checkpoint.save(str(tmp_path), params, CONFIG, step=step)
  (tmp_path / 'checkpoint_90.orbax-checkpoint-tmp').mkdir()
  newest = tmp_path / 'checkpoint_40'
  assert t5x_read_checkpoint.find(str(tmp_path)) == str(newest)
  assert t5x_read_checkpoint.find(f'{newest}/') == str(newest)
  SAVERS['legacy'](str(tmp_path / 'old'), params, CONFIG, step=5)
  legacy = tmp_path / 'old' / 'checkpoint_5'
  assert t5x_read_checkpoint.find(str(legacy / 'checkpoint')) == str(legacy)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match='there is nothing'):
    t5x_read_checkpoint.find(str(tmp_path / 'empty'))
  with pytest.raises(ValueError, match='exists, expected a new'):
    t5x_write_checkpoint.save(str(tmp_path), params, CONFIG, step=5)


def test_what_cannot_be_read_says_so(tmp_path, params):
  write_msgpack(tmp_path / 'checkpoint_1', params, version=1)
  with pytest.raises(ValueError, match='version 1, expected'):
    t5x_read_checkpoint.load_params(str(tmp_path), CONFIG)
  folder = tmp_path / 'tf'
  folder.mkdir()
  (folder / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt-1"')
  with pytest.raises(ValueError, match='TensorFlow checkpoint'):
    t5x_read_checkpoint.load_params(str(folder), CONFIG)


def _truncate(file):
  file.write_bytes(file.read_bytes()[:-20])


DAMAGES = {
  'orbax index': ('orbax', lambda at: _truncate(at / 'state' / '_METADATA')),
  'legacy index': ('legacy', lambda at: _truncate(at / 'checkpoint')),
  'array gone': (
    'legacy',
    lambda at: shutil.rmtree(at / 'target.token_embedder.embedding'),
  ),
  'array cut': (
    'legacy',
    lambda at: _truncate(at / 'target.token_embedder.embedding' / '0.0'),
  ),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_is_the_files_fault_not_a_bug(tmp_path, params, damage):
  saver, harm = DAMAGES[damage]
  folder = SAVERS[saver](str(tmp_path), params, CONFIG)
  harm(pathlib.Path(folder))
  with pytest.raises(contract.UserError, match='cannot be read .* Get it'):
    t5x_read_checkpoint.load_params(folder, CONFIG)


def test_a_run_knows_its_vocabulary(tmp_path, params):
  ours, other = map(vocabularies.load, ('bytes', 'bytes:9'))
  folder = t5x_write_checkpoint.save(
    str(tmp_path), params, CONFIG, run={'vocabulary': ours.fingerprint}
  )
  read_checkpoint.load_params(folder, CONFIG, vocabulary=ours)
  with pytest.raises(ValueError, match='was trained with vocabulary'):
    read_checkpoint.load_params(folder, CONFIG, vocabulary=other)


def test_what_t5x_states_is_read_in_whatever_lines_gin_writes_it(tmp_path):
  (tmp_path / 'config.gin').write_text(
    "ACTIVATIONS = ('gelu',\n               'linear')\n"
    'network.T5Config.emb_dim = \\\n    32\n'
    'network.T5Config.mlp_activations = %ACTIVATIONS\n'
    'network.T5Config.mlp_dim = @dimension()\n'
  )
  assert same_network.read_gin(str(tmp_path / 'checkpoint_1')) == {
    'emb_dim': 32,
    'mlp_activations': ('gelu', 'linear'),
  }
