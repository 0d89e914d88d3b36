# SPDX-License-Identifier: Apache-2.0
"""The network against recorded models and against a T5 in plain NumPy."""

import dataclasses
import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsbs_jax.core import attention, network
from dsbs_jax.interop import hf_checkpoint

TREES = json.loads(
  (pathlib.Path(__file__).parent / 'parameter_tree.json').read_text()
)
GATED = network.T5Config(
  vocab_size=30,
  emb_dim=16,
  num_heads=2,
  head_dim=6,
  mlp_dim=20,
  num_encoder_layers=2,
  num_decoder_layers=2,
  num_buckets=8,
  max_distance=12,
  dropout_rate=0.2,
)
TIED = dataclasses.replace(
  GATED, mlp_activations=('relu',), logits_via_embedding=True
)


@pytest.fixture(autouse=True)
def strict_promotion():
  with jax.numpy_dtype_promotion('strict'):
    yield


def _params(config, seed=0):
  """Parameters of a plausible size, the norms not all ones."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key == 'scale':
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    std = 1.0 if path[-1].key != 'kernel' else leaf.shape[-2] ** -0.5
    return rng.normal(scale=std, size=leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, network.param_shapes(config))


def _examples(seed=0, num=3):
  """Pairs of (source, target) ids, each target with its end token."""
  rng = np.random.default_rng(seed)
  return [
    (
      rng.integers(2, 30, rng.integers(4, 9)),
      np.append(rng.integers(2, 30, rng.integers(2, 6)), 1),
    )
    for _ in range(num)
  ]


def _padded(examples, source_length=12, target_length=9):
  sources = np.zeros((len(examples), source_length), np.int32)
  targets = np.zeros((len(examples), target_length), np.int32)
  for row, (source, target) in enumerate(examples):
    sources[row, : len(source)] = source
    targets[row, : len(target)] = target
  return {
    'encoder_input_tokens': sources,
    'decoder_input_tokens': np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    'decoder_target_tokens': targets,
  }


def _packed(examples, source_length=30, target_length=20):
  """All examples in one row."""
  names = ('encoder_input_tokens', 'encoder_segment_ids')
  rows = {name: np.zeros((1, source_length), np.int32) for name in names}
  for name in ('input_tokens', 'target_tokens', 'segment_ids'):
    rows[f'decoder_{name}'] = np.zeros((1, target_length), np.int32)
  s = t = 0
  for number, (source, target) in enumerate(examples, 1):
    places = slice(s, s + len(source)), slice(t, t + len(target))
    rows['encoder_input_tokens'][0, places[0]] = source
    rows['encoder_segment_ids'][0, places[0]] = number
    rows['decoder_input_tokens'][0, places[1]] = [0, *target[:-1]]
    rows['decoder_target_tokens'][0, places[1]] = target
    rows['decoder_segment_ids'][0, places[1]] = number
    s, t = places[0].stop, places[1].stop
  return rows


# Compiling takes most of the time of these tests.
_jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


@functools.cache
def _apply_function(config):
  @_jit
  def apply(params, rows, dropout_key):
    return network.apply(params, config, rows, dropout_key=dropout_key)

  return apply


@functools.cache
def _loss_function(config):
  @_jit
  @jax.value_and_grad
  def loss(params, rows, dropout_key):
    logits = network.apply(params, config, rows, dropout_key=dropout_key)
    targets = rows['decoder_target_tokens']
    picked = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    token_loss = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.sum(jnp.where(targets > 0, token_loss, 0.0))

  return loss


def _apply(params, config, rows, *, dropout_key=None):
  return _apply_function(config)(params, rows, dropout_key)


def _value_and_grad(params, config, rows, *, dropout_key=None):
  return _loss_function(config)(params, rows, dropout_key)


def _assert_trees_close(found, expected, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance),
    found,
    expected,
  )


class SlowT5:
  """One example, no padding, float64, loops over heads and positions."""

  def __init__(self, params, config):
    self.params = jax.tree.map(np.float64, params)
    self.config = config
    self.embedding = self.params['token_embedder']['embedding']

  def norm(self, x, layer):
    mean_square = (x**2).mean(axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + 1e-6) * layer['scale']

  def attend(self, layer, queries, memory, table=None, causal=False):
    output = np.zeros_like(queries)
    width = self.config.head_dim
    for head in range(self.config.num_heads):
      columns = slice(head * width, (head + 1) * width)
      query, key, value = (
        inputs @ layer[name]['kernel'][:, columns]
        for inputs, name in zip(
          (queries, memory, memory), ('query', 'key', 'value'), strict=True
        )
      )
      for t in range(len(queries)):
        last = t + 1 if causal else len(memory)
        scores = key[:last] @ query[t]
        if table is not None:
          buckets = attention.relative_buckets(
            np.arange(last) - t,
            bidirectional=not causal,
            num_buckets=self.config.num_buckets,
            max_distance=self.config.max_distance,
          )
          scores = scores + table[head, buckets]
        weights = np.exp(scores - scores.max())
        context = weights / weights.sum() @ value[:last]
        output[t] += context @ layer['out']['kernel'][columns]
    return output

  def mlp(self, layer, x):
    if self.config.mlp_activations == ('relu',):
      hidden = np.maximum(x @ layer['wi']['kernel'], 0)
    else:
      gate = x @ layer['wi_0']['kernel']
      inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
      hidden = gate * (1 + np.tanh(inner)) / 2 * (x @ layer['wi_1']['kernel'])
    return hidden @ layer['wo']['kernel']

  def __call__(self, source, target):
    encoder, decoder = self.params['encoder'], self.params['decoder']
    x = self.embedding[source]
    table = encoder['relpos_bias']['rel_embedding']
    for i in range(self.config.num_encoder_layers):
      layer = encoder[f'layers_{i}']
      y = self.norm(x, layer['pre_attention_layer_norm'])
      x = x + self.attend(layer['attention'], y, y, table)
      y = self.norm(x, layer['pre_mlp_layer_norm'])
      x = x + self.mlp(layer['mlp'], y)
    encoded = self.norm(x, encoder['encoder_norm'])
    x = self.embedding[[0, *target[:-1]]]
    table = decoder['relpos_bias']['rel_embedding']
    for i in range(self.config.num_decoder_layers):
      layer = decoder[f'layers_{i}']
      y = self.norm(x, layer['pre_self_attention_layer_norm'])
      x = x + self.attend(layer['self_attention'], y, y, table, causal=True)
      y = self.norm(x, layer['pre_cross_attention_layer_norm'])
      x = x + self.attend(layer['encoder_decoder_attention'], y, encoded)
      y = self.norm(x, layer['pre_mlp_layer_norm'])
      x = x + self.mlp(layer['mlp'], y)
    x = self.norm(x, decoder['decoder_norm'])
    if self.config.logits_via_embedding:
      return x @ self.embedding.T / np.sqrt(self.config.emb_dim)
    return x @ decoder['logits_dense']['kernel']


@pytest.mark.parametrize('config', [GATED, TIED], ids=['gated', 'tied'])
def test_padded_and_packed_rows_equal_examples_on_their_own(config):
  params, examples = _params(config), _examples()
  slow = SlowT5(params, config)
  padded = _apply(params, config, _padded(examples))
  packed = _apply(params, config, _packed(examples))
  start = 0
  for row, (source, target) in enumerate(examples):
    expected, length = slow(source, target), len(target)
    close = {'rtol': 1e-5, 'atol': 1e-5}
    np.testing.assert_allclose(padded[row, :length], expected, **close)
    np.testing.assert_allclose(
      packed[0, start : start + length], expected, **close
    )
    start += length


def _compare_with_recorded(case, encoded, hidden, logits):
  labels, logits = case['labels'], np.asarray(logits)
  real, source = labels >= 0, case['attention_mask'] > 0
  top8 = np.argsort(-logits, axis=-1, kind='stable')[..., :8]
  np.testing.assert_array_equal(top8[real], case['top8_ids'][real])
  targets = np.maximum(labels, 0)[..., None]
  logsumexp = np.log(np.exp(np.float64(logits)).sum(axis=-1))
  token_loss = logsumexp - np.take_along_axis(logits, targets, -1)[..., 0]
  for found, name, where in (
    (encoded, 'encoder_last_hidden', source),
    (hidden, 'decoder_last_hidden', real),
    (np.take_along_axis(logits, top8, -1), 'top8_logits', real),
    (logsumexp, 'logsumexp', real),
    (token_loss, 'token_loss', real),
    (logits, 'logits', real),
  ):
    if name in case:
      found, expected = np.asarray(found)[where], case[name][where]
      np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
  assert token_loss[real].mean() == pytest.approx(case['loss'], rel=1e-6)


@pytest.mark.parametrize('name', ['hf_t5_tiny', 'hf_t5_tied'])
def test_forward_passes_equal_those_of_hugging_face(shared_dir, name):
  folder = shared_dir / 'golden' / 'original' / name
  config = hf_checkpoint.config_from_hf(folder)
  params = hf_checkpoint.load_params(folder, config)
  recorded = np.load(folder / 'forward.npz')

  @_jit
  def forward(rows):
    encoded = network.encode(params, config, rows)
    hidden = network.decode(params, config, encoded, rows=rows)
    return encoded, hidden, network.logits(params, config, hidden)

  for size in ('small', 'large', 'long'):
    case = {
      key.removeprefix(f'{size}_'): recorded[key]
      for key in recorded
      if key.startswith(f'{size}_')
    }
    outputs = forward(
      {
        'encoder_input_tokens': case['input_ids'],
        'decoder_input_tokens': case['decoder_input_ids'],
        'decoder_target_tokens': np.maximum(case['labels'], 0),
      }
    )
    _compare_with_recorded(case, *outputs)


def test_padding_rows_are_inert_for_loss_and_gradients():
  """The sums over two examples are those of each beside padding rows."""
  params, (first, second, _) = _params(GATED), _examples()
  nothing = ([], [])
  both, one, other = (
    _value_and_grad(params, GATED, _padded(examples))
    for examples in (
      [first, second, nothing],
      [first, nothing, nothing],
      [nothing, second, nothing],
    )
  )
  added = jax.tree.map(np.add, one, other)
  _assert_trees_close(both, added, rtol=1e-4, atol=1e-5)


def test_rows_do_not_see_one_another():
  params, rows = _params(GATED), _padded(_examples())
  turned = {name: leaf[::-1] for name, leaf in rows.items()}
  np.testing.assert_allclose(
    _apply(params, GATED, turned)[::-1],
    _apply(params, GATED, rows),
    rtol=1e-5,
    atol=1e-5,
  )


def test_scanned_and_rematerialised_layers_have_the_same_gradients():
  params, rows = _params(GATED), _padded(_examples())
  plain = _value_and_grad(params, GATED, rows)
  scanned = dataclasses.replace(GATED, scan_layers=True, remat='minimal')
  stacked = network.stack_layers(params, GATED)
  loss, gradient = _value_and_grad(stacked, scanned, rows)
  gradient = network.unstack_layers(gradient, scanned)
  _assert_trees_close((loss, gradient), plain, rtol=1e-4, atol=1e-5)


def test_scanned_and_rematerialised_layers_draw_the_same_dropout():
  """A recomputed layer with new masks would have another gradient."""
  params, rows = _params(GATED), _padded(_examples())
  key = {'dropout_key': jax.random.key(7)}
  plain = _value_and_grad(params, GATED, rows, **key)
  again = dataclasses.replace(GATED, remat='full')
  found = _value_and_grad(params, again, rows, **key)
  _assert_trees_close(found, plain, rtol=1e-4, atol=1e-5)
  scanned = dataclasses.replace(GATED, scan_layers=True)
  stacked = network.stack_layers(params, GATED)
  np.testing.assert_allclose(
    _apply(stacked, scanned, rows, **key),
    _apply(params, GATED, rows, **key),
    rtol=1e-5,
    atol=1e-5,
  )


def test_stacking_is_lossless_on_the_host_and_on_devices():
  params = _params(GATED)
  stacked = network.stack_layers(params, GATED)
  query = stacked['encoder']['layers']['attention']['query']['kernel']
  assert query.shape == (2, 16, 12)
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(stacked))
  on_device = network.stack_layers(jax.tree.map(jnp.asarray, params), GATED)
  for found in (stacked, on_device):
    back = network.unstack_layers(found, GATED)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_the_wrong_layout_of_layers_is_named():
  rows = _padded(_examples())
  stacked = network.stack_layers(_params(GATED), GATED)
  with pytest.raises(ValueError, match=r'layers.*unstack_layers'):
    network.apply(stacked, GATED, rows)


def test_bfloat16_is_near_float32_and_logits_stay_float32():
  narrow = dataclasses.replace(GATED, dtype='bfloat16')
  params, rows = _params(GATED), _padded(_examples())
  (loss, gradient), (exact, _) = (
    _value_and_grad(params, config, rows) for config in (narrow, GATED)
  )
  assert abs(loss / exact - 1) < 0.03
  for leaf in jax.tree.leaves(gradient):
    assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()
  hidden, logits = jax.eval_shape(
    lambda: (
      network.hidden(params, narrow, rows),
      network.apply(params, narrow, rows),
    )
  )
  assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32


def test_dropout_follows_its_key_and_rate():
  params, rows = _params(GATED), _padded(_examples())
  first, second = jax.random.split(jax.random.key(1))
  dropped = _apply(params, GATED, rows, dropout_key=first)
  again = _apply(params, GATED, rows, dropout_key=first)
  np.testing.assert_array_equal(dropped, again)
  other = _apply(params, GATED, rows, dropout_key=second)
  assert np.abs(dropped - other).max() > 0.1
  off = dataclasses.replace(GATED, dropout_rate=0.0)
  np.testing.assert_allclose(
    _apply(params, off, rows, dropout_key=first),
    _apply(params, GATED, rows),
    atol=1e-6,
  )


def test_dropout_masks_are_shared_by_the_positions_of_a_row():
  """Equal tokens without position or neighbours to tell them apart."""
  params = _params(dataclasses.replace(GATED, num_encoder_layers=1))
  config = dataclasses.replace(GATED, num_encoder_layers=1)
  table = params['encoder']['relpos_bias']
  table['rel_embedding'] = jnp.zeros_like(table['rel_embedding'])
  rows = {'encoder_input_tokens': np.full((2, 8), 5, np.int32)}
  encoded = _jit(
    lambda key: network.encode(params, config, rows, dropout_key=key)
  )(jax.random.key(2))
  # After the encoder's last norm, and only there, positions differ: each
  # value is either dropped or what the other positions of the row have.
  encoded = np.asarray(encoded)
  assert (encoded == 0).any(axis=1).sum() > (encoded == 0).all(axis=1).sum()
  nearly = {'rtol': 1e-5, 'atol': 1e-5}
  for row in encoded:
    largest = row[np.abs(row).argmax(axis=0), np.arange(row.shape[1])]
    np.testing.assert_allclose(row, np.where(row == 0, 0, largest), **nearly)
  assert np.abs(encoded[0] - encoded[1]).max() > 0.1


@pytest.mark.parametrize('model', TREES)
def test_parameters_are_those_of_t5x(model):
  """Recorded from T5X's T5 example by jax.eval_shape of its init."""
  golden = TREES[model]
  config = network.T5Config(**golden['config'])
  shapes = jax.tree_util.tree_flatten_with_path(network.param_shapes(config))[0]
  axes = network.logical_axes(config)
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
    GATED,
    vocab_size=500,
    emb_dim=200,
    head_dim=100,
    mlp_dim=400,
    num_buckets=32,
    max_distance=128,
  )
  scanned = dataclasses.replace(config, scan_layers=True)
  params, stacked = _jit(
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


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'emb_dim': 0}, 'emb_dim is 0, expected an int >= 1'),
    ({'mlp_activations': ('tanh',)}, 'T5 1.1 has'),
    ({'mlp_activations': ()}, 'one or more of'),
    ({'dropout_rate': 1.0}, 'dropout_rate is 1.0'),
    ({'dtype': 'int8'}, 'float32, bfloat16'),
    ({'num_buckets': 6}, 'a multiple of 4'),
    ({'max_distance': 4}, 'max_distance is 4'),
    ({'remat': 'some'}, "remat is 'some'"),
  ],
)
def test_impossible_sizes_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(GATED, **wrong)
