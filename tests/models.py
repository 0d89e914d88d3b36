# SPDX-License-Identifier: Apache-2.0
"""Networks small enough for tests, compiled fast."""

import functools

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from dsbs_jax.core import network
from dsbs_jax.interop import t5x_read_checkpoint, t5x_storage

# Most of such a test's time is compilation; unoptimised code is fine.
COMPILER_OPTIONS = {'xla_backend_optimization_level': 0}
jit = functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
# As users compile, whatever XLA_FLAGS say: for tests that compare bits of two
# programs, which XLA fuses alike only so.
exact_jit = functools.partial(
  jax.jit,
  compiler_options={
    'xla_backend_optimization_level': 3,
    'xla_llvm_disable_expensive_passes': False,
    'xla_cpu_use_fusion_emitters': True,
  },
)


def t5(**changes) -> network.T5Config:
  """A T5 of one layer per stack, with these fields changed."""
  sizes = {
    'vocab_size': 128,
    'emb_dim': 16,
    'num_heads': 2,
    'head_dim': 8,
    'mlp_dim': 32,
    'num_encoder_layers': 1,
    'num_decoder_layers': 1,
  }
  return network.T5Config(**sizes | changes)


init = jax.jit(network.init, static_argnums=1)


def t5_params(config, seed=0):
  """Drawn by NumPy, of the spread of a new T5's, the norms not all ones."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name, kind = path[-2].key, path[-1].key
    if kind == 'scale':
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    std = {'kernel': leaf.shape[-2] ** -0.5, 'rel_embedding': 0.3}.get(kind, 1)
    if name == 'query':
      std *= config.head_dim**-0.5
    return rng.normal(scale=std, size=leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, network.param_shapes(config))


def t5x_step(path: str) -> int:
  """The step in a checkpoint that T5X or this project wrote."""
  folder = epath.Path(t5x_read_checkpoint.find(path))
  return int(t5x_storage.read_leaves(folder, 'state/step')[''].read().item())


def flat(tree) -> dict[str, np.ndarray]:
  """'path/to/leaf' -> its array."""
  return {
    name: np.asarray(leaf)
    for name, leaf in traverse_util.flatten_dict(tree, sep='/').items()
  }


def assert_equal(left, right):
  """Two trees have the same leaves, bit for bit; else the first is named."""
  left, right = flat(left), flat(right)
  assert left.keys() == right.keys()
  for name, array in left.items():
    np.testing.assert_array_equal(array, right[name], err_msg=name)
