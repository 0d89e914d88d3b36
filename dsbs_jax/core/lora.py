# SPDX-License-Identifier: Apache-2.0
"""LoRA: training a low-rank correction of some kernels, and nothing else.

  h = x W  becomes  h = x W + (alpha / r) (x A) B

W [D, F] is frozen, A [D, r] and B [r, F] are trained. B starts at 0, so that
step 0 is the model that the run starts from. A starts uniform in +-1/sqrt(D),
as in the authors' code and in PEFT.

Two trees take the place of the parameters: `frozen`, like the network's own,
and `adapters` with `lora_a` and `lora_b` where a targeted layer has its
`kernel`. `attach` puts both together for the forward pass, `merge` for readers,
who see a plain network: W + (alpha / r) A B.

Source: Hu et al. 2021 (arXiv:2106.09685), equation 3 and section 4.1. It writes
W + (alpha / r) B A, for columns x; its A and B have the same shapes transposed.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.core.layers import low_rank, parameter_tree

Params = dict[str, Any]

BASE_DTYPES = ('float32', 'bfloat16')
LORA_A, LORA_B = 'lora_a', 'lora_b'
_KERNEL = 'kernel'
# Of this many networks, sizes are kept: they are asked for at every step.
_MAX_SIZES = 8


@dataclasses.dataclass(frozen=True)
class LoRA:
  """Which kernels are corrected, and how.

  Attributes:
    rank: r of LoRA, the columns of A; 0 trains all parameters, without LoRA.
    alpha: the correction is multiplied by alpha / rank.
    targets: patterns of the kernels' paths, as in core/partitioning.py, with
      `layers` in place of layers_0, layers_1, ...; each must match one.
    base_dtype: 'float32' or 'bfloat16', in which the frozen kernels and
      embeddings are held.
  """

  rank: int = 0
  alpha: float = 16.0
  targets: tuple[str, ...] = ('.*attention/(query|value)/kernel',)
  base_dtype: str = 'float32'

  def __post_init__(self):
    if isinstance(self.targets, list):  # gin hands lists over
      object.__setattr__(self, 'targets', tuple(self.targets))
    if type(self.rank) is not int or self.rank < 0:
      raise contract.UserError(
        f'LORA_RANK is {self.rank!r}, expected a whole number such as 8, or 0'
        ' to train all parameters.'
      )
    number = (
      isinstance(self.alpha, int | float) and type(self.alpha) is not bool
    )
    if not number or not 0 < self.alpha < math.inf:
      raise contract.UserError(
        f'LORA_ALPHA is {self.alpha!r}, expected a number > 0, such as twice'
        ' the rank.'
      )
    if self.base_dtype not in BASE_DTYPES:
      raise contract.UserError(
        f'LORA_BASE_DTYPE is {self.base_dtype!r}, expected one of'
        f' {", ".join(BASE_DTYPES)}.'
      )
    _check_patterns(self.targets)

  @property
  def scale(self) -> float:
    """alpha / r."""
    return self.alpha / self.rank


def _check_patterns(targets: Any) -> None:
  expected = "a tuple of patterns such as ('.*attention/(query|value)/kernel',)"
  if not isinstance(targets, tuple) or not targets:
    raise contract.UserError(
      f'LORA_TARGETS is {targets!r}, expected {expected}.'
    )
  for pattern in targets:
    try:
      re.compile(pattern)
    except (re.error, TypeError) as error:
      raise contract.UserError(
        f'LORA_TARGETS has {pattern!r}, which is no pattern ({error}), expected'
        f' {expected}.'
      ) from error


OFF = LoRA()


def tree(config: network.Config, lora: LoRA) -> parameter_tree.Tree:
  """The adapters' description: names, shapes, axes, initial values.

  Raises:
    UserError: a pattern matches no kernel of the network.
  """
  whole = network.tree(config)
  layers = {
    stack: {'layers': specs} for stack, (_, specs) in whole.layers.items()
  }
  kernels = {
    '/'.join(path): spec
    for tree in (whole.outer, layers)
    for path, spec in traverse_util.flatten_dict(tree).items()
    if path[-1] == _KERNEL
  }
  targets = {}
  for pattern in lora.targets:
    found = {n: kernels[n] for n in kernels if re.fullmatch(pattern, n)}
    if not found:
      raise contract.UserError(
        f'LORA_TARGETS has {pattern!r}, which matches no kernel of the network,'
        f' expected a pattern of some of {", ".join(sorted(kernels))}.'
      )
    targets |= found
  outer = _pairs_of_specs(targets, lora.rank)
  layers = {
    stack: (number, outer[stack].pop('layers'))
    for stack, (number, _) in whole.layers.items()
    if 'layers' in outer.get(stack, {})
  }
  return parameter_tree.Tree(outer, layers, whole.scan_layers)


def _pairs_of_specs(specs: dict, rank: int) -> dict:
  """'path/kernel' -> Spec as a tree of `path/lora_a` and `path/lora_b`."""
  pairs = {}
  for name, spec in specs.items():
    (rows, columns), (row_axis, column_axis) = spec.shape, spec.axes
    path = tuple(name.split('/'))[:-1]
    pairs[*path, LORA_A] = parameter_tree.Spec(
      (rows, rank), (row_axis, 'lora_rank'), parameter_tree.uniform(rows**-0.5)
    )
    pairs[*path, LORA_B] = parameter_tree.Spec(
      (rank, columns), ('lora_rank', column_axis), jax.nn.initializers.zeros
    )
  return traverse_util.unflatten_dict(pairs)


@functools.lru_cache(_MAX_SIZES)
def sizes(config: network.Config, lora: LoRA) -> dict[str, int]:
  """Path of each trained matrix -> its numbers, those of all layers."""
  shapes = traverse_util.flatten_dict(tree(config, lora).shapes(), sep='/')
  return {name: math.prod(leaf.shape) for name, leaf in shapes.items()}


def init(key: jax.Array, config: network.Config, lora: LoRA) -> Params:
  """Draws the adapters, float32, by a typed random key; B is 0."""
  return tree(config, lora).init(key)


def attach(frozen: Params, adapters: Params, *, lora: LoRA) -> Params:
  """What the network takes for the parameters W + (alpha / r) A B.

  The frozen tree with a LowRankKernel at each kernel that adapters correct.
  """
  flat = traverse_util.flatten_dict(frozen)
  for path, a, b in _pairs(adapters):
    kernel = flat[*path, _KERNEL]
    flat[*path, _KERNEL] = low_rank.LowRankKernel(kernel, a, lora.scale * b)
  return traverse_util.unflatten_dict(flat)


def base_kernels(frozen: Params, adapters: Params) -> Params:
  """The part of the frozen tree, or of one like it, that adapters correct."""
  flat = traverse_util.flatten_dict(frozen)
  kernels = {
    (*path, _KERNEL): flat[*path, _KERNEL] for path, _, _ in _pairs(adapters)
  }
  return traverse_util.unflatten_dict(kernels)


def merged_kernels(
  kernels: Params, adapters: Params, lora: LoRA, *, dtype: str = 'float32'
) -> Params:
  """W + (alpha / r) A B for each targeted kernel, summed in float32.

  Args:
    kernels: as `base_kernels` gives them.
    adapters: their A and B, [.., D, r] and [.., r, F].
    lora: says the scale.
    dtype: of the result.
  """
  flat = traverse_util.flatten_dict(kernels)
  for path, a, b in _pairs(adapters):
    product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    kernel = flat[*path, _KERNEL].astype(jnp.float32)
    flat[*path, _KERNEL] = (kernel + lora.scale * product).astype(dtype)
  return traverse_util.unflatten_dict(flat)


def replace(params: Params, kernels: Params) -> Params:
  """A parameter tree with the leaves of `kernels`, a part of it, replaced."""
  flat = traverse_util.flatten_dict(params)
  flat |= traverse_util.flatten_dict(kernels)
  return traverse_util.unflatten_dict(flat)


def _pairs(adapters: Params) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
  """(path of a layer, A, B) of each pair."""
  flat = traverse_util.flatten_dict(adapters)
  for path, a in flat.items():
    if path[-1] == LORA_A:
      yield path[:-1], a, flat[*path[:-1], LORA_B]
