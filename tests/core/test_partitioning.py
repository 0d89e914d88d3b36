# SPDX-License-Identifier: Apache-2.0
"""The sharding table covers every parameter once; the state follows it."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from dsbs_jax.core import network, optimizer, partitioning, steps
from dsbs_jax.core.gradients import batch_parts
from tests import models

BASE = models.t5(
  vocab_size=512,
  emb_dim=64,
  num_heads=4,
  head_dim=16,
  mlp_dim=128,
  num_encoder_layers=2,
  num_decoder_layers=3,
)
VARIANTS = {
  'gated': BASE,
  'tied': dataclasses.replace(
    BASE, mlp_activations=('relu',), logits_via_embedding=True
  ),
  'scanned': dataclasses.replace(BASE, scan_layers=True),
}
# Shapes of devices that need not exist.
MESH = AbstractMesh((4, 2), ('data', 'model'))
TABLES = [partitioning.standard_rules(), partitioning.fully_sharded_rules()]


def flat(tree):
  return {
    partitioning.path_name(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      tree, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )
  }


@pytest.mark.parametrize('rules', TABLES, ids=['standard', 'fully_sharded'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_every_parameter_matches_one_row(variant, rules):
  shapes = network.param_shapes(VARIANTS[variant])
  specs = flat(partitioning.specs(shapes, rules))
  for name, leaf in flat(shapes).items():
    assert len(specs[name]) == len(leaf.shape)
    is_kernel = name.endswith(('kernel', 'embedding'))
    is_kernel &= not name.endswith('rel_embedding')
    assert ('model' in specs[name]) == is_kernel, name


def test_wide_dimensions_are_the_split_ones():
  shapes = network.param_shapes(BASE)
  specs = flat(partitioning.specs(shapes, TABLES[0]))
  wide = {512, 128}  # vocabulary, MLP; joined heads are as wide as D here
  for name, leaf in flat(shapes).items():
    for length, axis in zip(leaf.shape, specs[name], strict=True):
      if length in wide:
        assert axis == 'model', name
  assert specs['decoder/layers_2/self_attention/out/kernel'][0] == 'model'
  assert specs['decoder/layers_2/self_attention/query/kernel'][1] == 'model'


def test_stacked_layers_are_split_as_unrolled_ones():
  unrolled = flat(partitioning.specs(network.param_shapes(BASE), TABLES[1]))
  stacked = flat(
    partitioning.specs(network.param_shapes(VARIANTS['scanned']), TABLES[1])
  )
  for name, spec in stacked.items():
    if '/layers/' in name:
      one = unrolled[name.replace('/layers/', '/layers_0/')]
      assert spec == PartitionSpec(None, *one)
    else:
      assert spec == unrolled[name]


def test_full_sharding_leaves_an_eighth_of_every_matrix_per_device():
  shapes = network.param_shapes(BASE)
  shardings = flat(partitioning.shardings(shapes, MESH, TABLES[1]))
  for name, leaf in flat(shapes).items():
    local = np.prod(shardings[name].shard_shape(leaf.shape))
    is_matrix = len(leaf.shape) == 2 and 'relpos' not in name
    assert local * (8 if is_matrix else 1) == np.prod(leaf.shape), name


@pytest.mark.parametrize('make', [optimizer.adamw_hf, optimizer.adafactor])
@pytest.mark.parametrize('variant', ['gated', 'scanned'])
def test_the_optimizer_state_follows_its_parameters(make, variant):
  state = jax.eval_shape(
    lambda: steps.init_state(jax.random.key(0), VARIANTS[variant], make(1e-3))
  )
  shardings = partitioning.state_shardings(state, MESH, TABLES[1])
  assert jax.tree.structure(shardings) == jax.tree.structure(state)
  by_param = flat(shardings.params)
  shapes = flat(state.params)
  followed = 0
  for name, sharding in flat(shardings.opt_state).items():
    shape = flat(state.opt_state)[name].shape
    owner = [param for param in shapes if name.endswith(f'/{param}')]
    if owner and shape == shapes[max(owner, key=len)].shape:
      assert sharding == by_param[max(owner, key=len)]
      followed += sharding.spec != PartitionSpec(*[None] * len(shape))
    else:
      assert sharding.is_fully_replicated, name
  assert followed >= 10
  assert shardings.step.is_fully_replicated


def test_a_parameter_without_a_row_is_named():
  with pytest.raises(ValueError, match='encoder/surprise matches 0 rows'):
    partitioning.specs(
      {'encoder': {'surprise': jax.ShapeDtypeStruct((4, 4), 'float32')}},
      TABLES[0],
    )


def test_a_parameter_with_two_rows_is_named():
  rules = TABLES[0] + ((r'.*embedding', PartitionSpec()),)
  with pytest.raises(ValueError, match='matches 2 rows'):
    partitioning.specs(network.param_shapes(BASE), rules)


def test_a_row_of_too_many_dimensions_is_named():
  rules = ((r'a', PartitionSpec('data', 'model')),)
  with pytest.raises(ValueError, match=r'a has shape \(4,\)'):
    partitioning.specs({'a': jax.ShapeDtypeStruct((4,), 'float32')}, rules)


def test_an_axis_that_does_not_divide_is_dropped_and_told():
  config = dataclasses.replace(BASE, vocab_size=511)
  shapes = network.param_shapes(config)
  shardings = flat(partitioning.shardings(shapes, MESH, TABLES[0]))
  assert shardings['token_embedder/embedding'].is_fully_replicated
  assert shardings['encoder/layers_0/mlp/wo/kernel'].spec[0] == 'model'
  lines = partitioning.dropped_axes(shapes, MESH, TABLES[0])
  assert len(lines) == 2  # embedding and logits
  assert 'decoder/logits_dense/kernel: dimension 1 of (64, 511)' in lines[0]
  assert not partitioning.dropped_axes(
    network.param_shapes(BASE), MESH, TABLES[0]
  )


def test_a_mesh_is_made_from_text_and_numbers():
  device = jax.devices()[:1]
  for shape in ('1x1', (1, 1), [1, 1], None):
    mesh = partitioning.make_mesh(shape, devices=device)
    assert dict(mesh.shape) == {'data': 1, 'model': 1}


@pytest.mark.parametrize('shape', ['8', '2x', '0x1', 'axb', (1, 1, 1)])
def test_a_mesh_that_is_no_pair_is_refused(shape):
  with pytest.raises(ValueError, match='expected data x model'):
    partitioning.make_mesh(shape)


def test_a_mesh_of_other_size_than_the_devices_is_refused():
  with pytest.raises(ValueError, match='4x2 needs 8 devices, but 1 are there'):
    partitioning.make_mesh('4x2', devices=jax.devices()[:1])


def test_rows_must_divide_over_data_shards_and_microbatches():
  batch = {'label': {'decoder_target_tokens': np.zeros((12, 3))}}
  batch_parts.check_batch(batch, MESH)
  batch_parts.check_batch(batch, MESH, num_microbatches=3)
  with pytest.raises(ValueError, match='12 rows, expected a multiple of 8'):
    batch_parts.check_batch(batch, MESH, num_microbatches=2)
