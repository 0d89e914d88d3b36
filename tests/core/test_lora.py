# SPDX-License-Identifier: Apache-2.0
"""LoRA: W + (alpha / r) A B, of which A and B alone are trained."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import AbstractMesh

from dsbs_jax.core import (
  lora,
  network,
  objective,
  optimizer,
  partitioning,
  steps,
)
from dsbs_jax.core.gradients import batch_gradient
from dsbs_jax.core.layers import parameter_tree
from dsbs_jax.interop.hf import hf_checkpoint, hf_layout
from tests import models
from tests.core import test_steps, tiny_t5
from tests.core.gemma import recorded_gemma
from tests.recordings import hf_folders, replay

ALL = lora.LoRA(rank=3, alpha=5.0, targets=('.*/kernel',))
T5 = models.t5(vocab_size=50, mlp_dim=24, head_dim=10, dropout_rate=0.0)
SCANNED = dataclasses.replace(T5, scan_layers=True, num_encoder_layers=2)
GEMMA = dataclasses.replace(recorded_gemma.CONFIG, dropout_rate=0.0)
init = jax.jit(lora.init, static_argnums=(1, 2))
CONFIGS = {'t5': T5, 'scanned': SCANNED, 'gemma': GEMMA}


def base(config):
  if isinstance(config, network.GemmaConfig):
    return recorded_gemma.params()
  return tiny_t5.params(config)


def adapters(config, settings, seed=5):
  """A as it is drawn, and a B that has been trained, so to speak."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    size = 0.3 if path[-1].key == lora.LORA_B else 0.0
    return leaf + size * rng.normal(size=leaf.shape).astype(np.float32)

  drawn = init(jax.random.key(seed), config, settings)
  return jax.tree_util.tree_map_with_path(draw, drawn)


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


@models.jit
def merge(params, adapters):
  """W + (alpha / r) A B at all targets, in one program."""
  kernels = lora.base_kernels(params, adapters)
  return lora.merged_kernels(kernels, adapters, ALL)


@functools.cache
def apply(config):
  return models.jit(lambda params, rows: network.apply(params, config, rows))


@functools.cache
def value_and_grad(config, settings=None, chunk_tokens=0):
  """(trained, frozen, batch) -> loss and gradient of what is trained."""

  def function(trained, frozen, batch):
    options = {}
    if settings is not None:
      options['network_params'] = functools.partial(
        lora.attach, frozen, lora=settings
      )
    (loss, _), gradient = batch_gradient.batch_value_and_grad(
      trained,
      batch,
      config=config,
      distillation=objective.Distillation(alpha=0.3),
      dropout_key=jax.random.key(0),
      chunk_tokens=chunk_tokens,
      **options,
    )
    return loss, gradient

  return models.jit(function)


@pytest.mark.parametrize(
  'name', ['t5', 'gemma', pytest.param('scanned', marks=pytest.mark.long)]
)
def test_step_0_is_the_model_that_it_starts_from(name):
  config, rows = CONFIGS[name], test_steps.make_batch()['label']
  params = base(config)
  fresh = init(jax.random.key(1), config, ALL)
  found = flat(fresh)
  assert all(leaf.any() == name.endswith('a') for name, leaf in found.items())
  attached = lora.attach(params, fresh, lora=ALL)
  expected = apply(config)(params, rows)
  np.testing.assert_array_equal(apply(config)(attached, rows), expected)
  models.assert_equal(lora.replace(params, merge(params, fresh)), params)


@pytest.mark.parametrize(
  ('name', 'chunk_tokens'),
  [
    pytest.param('t5', 0, marks=pytest.mark.long),
    pytest.param('t5', 16, marks=pytest.mark.long),
    pytest.param('scanned', 0, marks=pytest.mark.long),
    ('scanned', 16),
    pytest.param('gemma', 0, marks=pytest.mark.long),
  ],
)
def test_gradients_are_those_of_the_whole_kernels_by_the_chain_rule(
  name, chunk_tokens
):
  """dA = s dW B^T and dB = s A^T dW, in NumPy's float64, at W + s A B."""
  config, batch = CONFIGS[name], test_steps.make_mixture()
  params, trained = base(config), adapters(CONFIGS[name], ALL)
  merged, scale = dict(flat(params)), 5.0 / 3.0
  pairs = {
    path.removesuffix('/lora_a'): (np.float64(a), np.float64(b))
    for path, a in flat(trained).items()
    if path.endswith('/lora_a')
    for b in [flat(trained)[path[:-1] + 'b']]
  }
  for path, (a, b) in pairs.items():
    merged[f'{path}/kernel'] = np.float32(
      merged[f'{path}/kernel'] + scale * a @ b
    )
  merged = traverse_util.unflatten_dict(merged, sep='/')
  tiny_t5.assert_trees_close(
    lora.replace(params, merge(params, trained)), merged, rtol=1e-5, atol=1e-6
  )
  loss, whole = value_and_grad(config)(merged, {}, batch)
  found_loss, found = value_and_grad(config, ALL, chunk_tokens)(
    trained, params, batch
  )
  np.testing.assert_allclose(found_loss, loss, rtol=1e-6)
  whole, found = flat(whole), flat(found)
  assert len(found) == 2 * len(pairs)
  for path, (a, b) in pairs.items():
    gradient = scale * np.float64(whole[f'{path}/kernel'])
    for part, expected in (
      ('a', gradient @ np.swapaxes(b, -1, -2)),
      ('b', np.swapaxes(a, -1, -2) @ gradient),
    ):
      size = np.abs(expected).max()
      np.testing.assert_allclose(
        found[f'{path}/lora_{part}'], expected, rtol=1e-4, atol=1e-5 * size
      )


@pytest.mark.parametrize(
  'chunk_tokens', [pytest.param(0, marks=pytest.mark.long), 32]
)
def test_no_gradient_of_a_frozen_weight_is_computed(chunk_tokens):
  """No product in the compiled program has a frozen matrix's shape."""
  config = dataclasses.replace(T5, head_dim=9)  # no two sizes are equal
  params = network.param_shapes(config)
  matrices = {leaf.shape for leaf in flat(params).values() if leaf.ndim == 2}
  batch = test_steps.make_mixture()

  def products(trained, settings=None):
    function = value_and_grad(config, settings, chunk_tokens)
    program = function.lower(trained, params, batch).compile().as_text()
    found = re.findall(r'= f32\[(\d+),(\d+)\]\S* dot\(', program)
    return {tuple(map(int, shape)) for shape in found}

  kernels = {
    leaf.shape for path, leaf in flat(params).items() if 'kernel' in path
  }
  assert kernels <= products(params)
  trained = lora.tree(config, ALL).shapes()
  assert not matrices & products(trained, ALL)


def test_the_optimizer_knows_the_adapters_alone():
  transformation = optimizer.adamw_hf(1e-3)
  state = jax.eval_shape(
    lambda key: steps.init_state(key, T5, transformation, lora=ALL),
    jax.random.key(0),
  )
  sizes = lora.sizes(T5, ALL)
  moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape]
  assert sum(leaf.size for leaf in moments) == 2 * sum(sizes.values())
  assert flat(state.params).keys() == sizes.keys()


def test_both_layouts_have_the_same_adapters():
  drawn = init(jax.random.key(3), SCANNED, ALL)
  unrolled = dataclasses.replace(SCANNED, scan_layers=False)
  found = flat(init(jax.random.key(3), unrolled, ALL))
  for path, leaf in flat(drawn).items():
    layers = leaf if '/layers/' in path else [leaf]
    for number, layer in enumerate(layers):
      name = path.replace('/layers/', f'/layers_{number}/')
      np.testing.assert_array_equal(found[name], layer, err_msg=name)


@pytest.mark.parametrize(
  'name', ['t5', pytest.param('gemma', marks=pytest.mark.long)]
)
def test_a_bfloat16_base_computes_what_bfloat16_activations_do(name):
  """The layers round kernels to it anyway: not a bit of the loss differs."""
  config = dataclasses.replace(CONFIGS[name], dtype='bfloat16')
  half = dataclasses.replace(ALL, base_dtype='bfloat16')
  params, trained = base(config), adapters(config, ALL)
  rounded = parameter_tree.round_large(params, half.base_dtype)
  dtypes = {path: leaf.dtype for path, leaf in flat(rounded).items()}
  for path, dtype in dtypes.items():
    large = path.endswith(('/kernel', '/embedding'))
    assert dtype == (jnp.bfloat16 if large else jnp.float32), path
  batch = test_steps.make_mixture()
  losses = [
    value_and_grad(config, settings)(trained, frozen, batch)[0]
    for settings, frozen in ((ALL, params), (half, rounded))
  ]
  assert losses[0] == losses[1]


@pytest.mark.parametrize(
  'rules', [partitioning.standard_rules(), partitioning.fully_sharded_rules()]
)
def test_a_pair_is_split_as_its_kernel_is(rules):
  mesh = AbstractMesh((2, 2), ('data', 'model'))
  config = dataclasses.replace(SCANNED, vocab_size=64)
  state = jax.eval_shape(
    lambda key: steps.init_state(key, config, optimizer.adamw(1e-3), lora=ALL),
    jax.random.key(0),
  )
  shardings = partitioning.state_shardings(state, mesh, rules)
  frozen, pairs = flat(shardings.frozen), flat(shardings.params)
  assert any('model' in sharding.spec for sharding in frozen.values())
  for path, sharding in pairs.items():
    kernel = frozen[f'{path[:-7]}/kernel'].spec
    leading = (None,) * ('/layers/' in path)
    assert len(kernel) == len(sharding.spec) == 2 + len(leading)
    rows, columns = kernel[-2:]
    expected = (rows, None) if path.endswith('lora_a') else (None, columns)
    assert tuple(sharding.spec) == (*leading, *expected), path
  # The moments follow.
  assert flat(shardings.opt_state[1].mu) == pairs


def test_20_steps_are_those_of_peft(tmp_path):
  """Torch's AdamW on PEFT's LoRA of the recorded T5, from the same A."""
  recorded = np.load(hf_folders.BUNDLED / 't5_1_1' / 'lora.npz')
  recording = replay.read_parcels(lambda: tmp_path, models.jit)
  settings = lora.LoRA(
    rank=3,
    alpha=5.0,
    targets=(
      '.*attention/(query|value)/kernel',
      '.*/wo/kernel',
      '.*/logits_dense/kernel',
    ),
  )
  config = recording.config
  frozen = hf_checkpoint.load_params(recording.start, config)
  names = {
    '/'.join(path): name.removesuffix('.weight')
    for path, name in hf_layout.tensor_names(config).items()
  }

  def theirs(path):
    name = names[f'{path[:-7]}/kernel']
    return recorded[f'{name}.lora_{path[-1].upper()}.weight'].T

  drawn = flat(init(jax.random.key(0), config, settings))
  assert 2 * len(drawn) == 2 * (len(recorded.files) - 1)
  start = {
    path: _peft_start(names[f'{path[:-7]}/kernel'], leaf.shape)
    if path.endswith('a')
    else leaf
    for path, leaf in drawn.items()
  }
  num_steps = len(recorded['terms'])
  transformation = optimizer.adamw(
    optimizer.linear_decay(1e-2, total_steps=num_steps), clip_norm=1.0
  )
  state = steps.state_from_params(
    traverse_util.unflatten_dict(start, sep='/'), transformation
  ).replace(frozen=frozen)
  step = steps.make_train_step(
    config,
    objective.Distillation(alpha=0.5),
    transformation,
    run_key=jax.random.key(0),
    lora=settings,
  )
  batches = test_steps.as_mixture(
    jax.tree.map(lambda rows: rows[:num_steps], recording.batches['padded'])
  )
  state, metrics = models.jit(lambda *x: jax.lax.scan(step, *x))(state, batches)
  found = np.stack(
    [
      metrics['label/loss_sum'] / metrics['label/tokens'],
      metrics['rationale/loss_sum'] / metrics['rationale/tokens'],
      metrics['loss'],
      metrics['grad_norm'],
    ],
    axis=1,
  )
  np.testing.assert_allclose(found[:, :3], recorded['terms'][:, :3], rtol=1e-5)
  np.testing.assert_allclose(found[:, 3], recorded['terms'][:, 3], rtol=1e-4)
  trained = flat(state.params)
  for path, leaf in trained.items():
    np.testing.assert_allclose(leaf, theirs(path), rtol=0, atol=1e-4)
  # What is watched is what is trained: adapters.
  norm = np.linalg.norm([np.linalg.norm(leaf) for leaf in trained.values()])
  np.testing.assert_allclose(metrics['param_norm'][-1], norm, rtol=1e-5)


def _peft_start(name, shape):
  """A as tests/recordings/record_lora.py draws it, transposed."""
  from tests.recordings import start_weights

  key = f'{name}.lora_A.weight'
  return start_weights.draw({key: shape[::-1]})[key].T


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'rank': -1}, 'LORA_RANK is -1, expected a whole number'),
    ({'rank': 2.0}, 'LORA_RANK is 2.0'),
    ({'alpha': 0}, 'LORA_ALPHA is 0, expected a number > 0'),
    ({'base_dtype': 'float16'}, "LORA_BASE_DTYPE is 'float16', expected one"),
    ({'targets': '.*'}, r"LORA_TARGETS is '\.\*', expected a tuple"),
    ({'targets': ()}, r'LORA_TARGETS is \(\), expected a tuple'),
    ({'targets': ('(',)}, r"LORA_TARGETS has '\(', which is no pattern"),
  ],
)
def test_what_it_cannot_be_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    lora.LoRA(**fields)


@pytest.mark.parametrize(
  'pattern', ['.*/qeury/kernel', 'encoder/layers_0/.*', '.*/embedding']
)
def test_a_pattern_that_matches_no_kernel_is_refused(pattern):
  settings = lora.LoRA(rank=2, targets=('.*/wo/kernel', pattern))
  with pytest.raises(
    ValueError, match=r'matches no kernel .* encoder/layers/mlp/wo/kernel'
  ):
    lora.tree(T5, settings)
