# SPDX-License-Identifier: Apache-2.0
"""Names, shapes, axes and initial values are those of T5X."""

import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.core import network
from tests import models
from tests.core import tiny_t5

TREES = json.loads(
  (pathlib.Path(__file__).parent / 'parameter_tree.json').read_text()
)


pytestmark = pytest.mark.usefixtures('strict_promotion')


def test_stacking_is_lossless_on_the_host_and_on_devices():
  params = tiny_t5.params(tiny_t5.GATED)
  stacked = network.stack_layers(params, tiny_t5.GATED)
  query = stacked['encoder']['layers']['attention']['query']['kernel']
  assert query.shape == (2, 16, 12)
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(stacked))
  on_device = network.stack_layers(
    jax.tree.map(jnp.asarray, params), tiny_t5.GATED
  )
  for found in (stacked, on_device):
    back = network.unstack_layers(found, tiny_t5.GATED)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize('model', TREES)
def test_parameters_are_those_of_t5x(model):
  """Recorded from T5X's T5 example by jax.eval_shape of its init."""
  golden = TREES[model]
  config = network.T5Config(**golden['config'])
  shapes = jax.tree_util.tree_flatten_with_path(network.param_shapes(config))[0]
  axes = network.tree(config).axes()
  found = {}
  for path, leaf in shapes:
    names = [entry.key for entry in path]
    node = axes
    for name in names:
      node = node[name]
    pattern = re.sub(r'layers_\d+', 'layers_*', '/'.join(names))
    row = {'shape': list(leaf.shape), 'axes': list(node), 'layers': 0}
    found.setdefault(pattern, row)['layers'] += 1
    assert found[pattern] == row | {'layers': found[pattern]['layers']}
    assert leaf.dtype == jnp.float32
  assert found == golden['tree']
  assert sum(leaf.size for _, leaf in shapes) == golden['parameters']


@pytest.mark.parametrize(
  ('model', 'parameters'),
  [
    ('t5_1_1/small', 76_961_152),
    ('t5_1_1/base', 247_577_856),
    ('t5_1_1/large', 783_150_080),
    ('t5_1_1/xl', 2_849_757_184),
    ('t5_1_1/xxl', 11_135_332_352),
    ('t5_1_0/base', 222_903_552),
  ],
)
def test_parameter_counts_are_the_published_ones(model, parameters):
  config = network.T5Config(**TREES[model]['config'])
  for scan_layers in (False, True):
    shapes = network.param_shapes(
      dataclasses.replace(config, scan_layers=scan_layers)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_initial_values_have_the_shapes_and_spread_of_t5x():
  config = dataclasses.replace(
    tiny_t5.GATED,
    vocab_size=500,
    emb_dim=200,
    head_dim=100,
    mlp_dim=400,
    num_buckets=32,
    max_distance=128,
  )
  scanned = dataclasses.replace(config, scan_layers=True)
  params, stacked = models.exact_jit(
    lambda key: (network.init(key, config), network.init(key, scanned))
  )(jax.random.key(0))
  jax.tree.map(
    np.testing.assert_array_equal,
    network.stack_layers(params, config),
    stacked,
  )
  for found, size in ((params, config), (stacked, scanned)):
    shapes = jax.tree.map(lambda leaf: leaf.shape, found)
    expected = jax.tree.map(lambda leaf: leaf.shape, network.param_shapes(size))
    assert shapes == expected
  layer = params['decoder']['layers_1']
  attend = layer['encoder_decoder_attention']
  for leaf, std in (
    (params['token_embedder']['embedding'], 1.0),
    (attend['query']['kernel'], (200 * 100) ** -0.5),
    (attend['key']['kernel'], 200**-0.5),
    (attend['value']['kernel'], 200**-0.5),
    (attend['out']['kernel'], 200**-0.5),
    (layer['mlp']['wi_0']['kernel'], 200**-0.5),
    (layer['mlp']['wo']['kernel'], 400**-0.5),
    (params['decoder']['logits_dense']['kernel'], 200**-0.5),
  ):
    assert np.std(leaf) == pytest.approx(std, rel=0.02)
    assert abs(np.mean(leaf)) < 0.02 * std
  wo = np.asarray(layer['mlp']['wo']['kernel'])
  assert np.abs(wo).max() < 2.3 * 400**-0.5  # a normal cut at 2 / 0.88
  table = np.asarray(params['encoder']['relpos_bias']['rel_embedding'])
  assert 0.8 < np.abs(table).max() / np.sqrt(6 / 34) <= 1.0
  assert (np.asarray(layer['pre_mlp_layer_norm']['scale']) == 1.0).all()
  kernels = [
    np.asarray(leaf).ravel()[:9]
    for leaf in jax.tree.leaves(params)
    if leaf.ndim > 1
  ]
  for i, kernel in enumerate(kernels):
    assert all(np.abs(kernel - other).max() > 0 for other in kernels[:i])
