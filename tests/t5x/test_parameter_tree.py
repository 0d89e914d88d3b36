# SPDX-License-Identifier: Apache-2.0
"""Our parameter tree is T5X's, for every size: names, shapes, axes."""

import pathlib

import jax
import pytest
from flax import traverse_util

from dsbs_jax.core import network

SIZES = [
  f'{family}/{size}'
  for family in ('t5_1_1', 't5_1_0')
  for size in ('tiny', 'small', 'base', 'large', 'xl', 'xxl')
]


def golden(trees, size):
  """Path -> (shape, axes), the layers written out."""
  entries = {}
  for path, entry in trees[size]['tree'].items():
    for layer in range(entry['layers']):
      name = path.replace('layers_*', f'layers_{layer}')
      entries[name] = (tuple(entry['shape']), tuple(entry['axes']))
  return entries


@pytest.mark.parametrize('size', SIZES)
def test_t5x_has_the_golden_tree(trees, size):
  from flax.linen import partitioning
  from t5x.examples.t5 import network as t5x_network

  module = t5x_network.Transformer(
    config=t5x_network.T5Config(**trees[size]['config'], dtype='float32')
  )
  tokens = jax.ShapeDtypeStruct((1, 4), 'int32')
  variables = jax.eval_shape(
    lambda key, rows: module.init(key, rows, rows, rows, enable_dropout=False),
    jax.random.PRNGKey(0),
    tokens,
  )
  shapes = traverse_util.flatten_dict(variables['params'], sep='/')
  axes = traverse_util.flatten_dict(
    partitioning.get_axis_names(variables['params_axes']), sep='/'
  )
  assert golden(trees, size) == {
    name: (leaf.shape, tuple(axes[name])) for name, leaf in shapes.items()
  }
  count = sum(leaf.size for leaf in shapes.values())
  assert count == trees[size]['parameters']


@pytest.mark.parametrize('size', SIZES)
def test_ours_is_the_golden_tree(trees, size):
  config = network.T5Config(**trees[size]['config'])
  shapes = traverse_util.flatten_dict(network.param_shapes(config), sep='/')
  axes = traverse_util.flatten_dict(network.tree(config).axes(), sep='/')
  assert golden(trees, size) == {
    name: (leaf.shape, axes[name]) for name, leaf in shapes.items()
  }


# T5X's t5_1_0/tiny.gin includes the base of 1.1: it is no T5 1.0.
@pytest.mark.parametrize('size', [s for s in SIZES if s != 't5_1_0/tiny'])
def test_the_sizes_are_those_of_t5xs_gin_files(trees, size):
  import t5x

  import gin

  family, name = size.split('/')
  if family == 't5_1_0':  # T5X calls the large ones by their parameters
    name = {'xl': '3B', 'xxl': '11B'}.get(name, name)
  package = pathlib.Path(t5x.__path__[0])
  gin.clear_config()
  gin.add_config_file_search_path(str(package.parent))
  gin.parse_config_files_and_bindings(
    [f't5x/examples/t5/{family}/{name}.gin'], 'DROPOUT_RATE = 0.0'
  )
  config = gin.get_configurable('network.T5Config')()
  gin.clear_config()
  expected = trees[size]['config']
  found = {key: getattr(config, key) for key in expected}
  found['mlp_activations'] = list(found['mlp_activations'])
  assert found == expected
