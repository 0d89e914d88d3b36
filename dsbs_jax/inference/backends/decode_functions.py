# SPDX-License-Identifier: Apache-2.0
"""A student's jitted functions: labels, rationales, scores of given outputs.

Each is compiled once per shape of its batch, when that shape first occurs, and
shared by all students of a process that have the same network.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import decoding, network, partitioning, platform
from dsbs_jax.inference.backends import cpu_threads

# Of this many kinds of functions, programs are kept.
_MAX_SHARED = 8
# Logits in memory at once while options are scored: 1 GiB in float32.
MAX_LOGITS = 1 << 28
# Of a batch's tokens: the encoder that leaves padding out, see `cache.prefill`.
# T5 small takes 0.57 s for 16 rows of 25 to 60 tokens with it, 0.78 s without.
# Compiling takes three times as long, so there is one share.
_CPU_TOKEN_SHARES = (0.75,)
# XLA's CPU backend has two libraries for products of matrices. The one that it
# takes by default, YNNPACK, is faster at the encoder's thousands of rows; the
# other, Eigen, at a decoding step's dozens: T5 small takes 32 ms per step of 16
# rows and core instead of 50 (docs/performance.md).
_CPU_STEP_OPTIONS = {'xla_cpu_experimental_ynn_fusion_type': ''}


class DecodeFns:
  """The functions, with the parameters and devices that they run on.

  Args:
    params: its parameters, on the devices.
    max_decode_len: tokens to generate at most for a label.
    max_rationale_len: tokens to generate at most for a rationale.
    num_beams: 1 for greedy decoding; rationales are decoded greedily.
    max_logits: logits in memory at once while options are scored.
  """

  is_compiled = True

  def __init__(
    self,
    model: network.Config,
    params: Any,
    *,
    mesh: jax.sharding.Mesh,
    max_decode_len: int,
    max_rationale_len: int,
    num_beams: int = 1,
    stop: tuple[int, ...] = (),
    max_logits: int = MAX_LOGITS,
  ):
    self._params, self._vocab_size = params, model.vocab_size
    self._max_logits = max_logits
    self._shards = mesh.shape[partitioning.DATA_AXIS]
    decode = functools.partial(jit_decode, model, mesh)
    self._generate = decode(
      max_decode_len=max_decode_len, num_beams=num_beams, stop=stop
    )
    self._generate_rationale = decode(max_decode_len=max_rationale_len)
    self._score = jit_score(model, mesh)

  def round_up_rows(self, num: int) -> int:
    """The next number of rows that all devices share evenly."""
    return -(-num // self._shards) * self._shards

  def generate(self, tokens: np.ndarray) -> np.ndarray:
    """Decodes the label task.

    Args:
      tokens: [B, S] int32, the inputs; B as `round_up_rows` gives it.

    Returns:
      [B, max_decode_len] int32, 0 after the end token.
    """
    return self._generate(self._params, {'encoder_input_tokens': tokens})

  def generate_rationale(self, tokens: np.ndarray) -> np.ndarray:
    """Decodes the rationale task: [B, max_rationale_len] int32."""
    return self._generate_rationale(
      self._params, {'encoder_input_tokens': tokens}
    )

  def score_options(
    self, tokens: np.ndarray, options: np.ndarray
  ) -> np.ndarray:
    """Scores given outputs, in parts where their logits would not fit.

    Args:
      tokens: [B, S] int32, the inputs.
      options: [B, options, T] int32, outputs with their end token, 0 padded.

    Returns:
      [B, options] float32, log p of each option, -inf for an empty one.
    """
    num_rows, num_options, length = options.shape
    logits = self._shards * length * self._vocab_size  # an option per device
    fitting = max(1, self._max_logits // logits)
    rows = self._shards * max(1, fitting // num_options)
    scores = [
      [
        self._score(self._params, tokens[i : i + rows], some)
        for some in option_parts(options[i : i + rows], fitting)
      ]
      for i in range(0, num_rows, rows)
    ]
    return np.block(scores)


def jit_decode(
  model: network.Config,
  mesh: jax.sharding.Mesh,
  *,
  max_decode_len: int,
  num_beams: int = 1,
  stop: tuple[int, ...] = (),
) -> Callable[..., np.ndarray]:
  """Greedy outputs, or the best beam's; see `DecodeFns`.

  Args:
    mesh: the devices; rows are split over its data axis.
    max_decode_len: length of each output, end token included.
    num_beams: 1 decodes greedily.
    stop: ids that end an output where they stand one after another, for greedy
      decoding; () decodes to the end token.

  Returns:
    (params, row group) -> [B, max_decode_len] int32; it raises UserError where
    logits are not finite.
  """

  decode = decode_program(
    model, mesh, max_decode_len=max_decode_len, num_beams=num_beams, stop=stop
  )
  program = cpu_threads.per_core(decode, mesh)

  def run(params, rows):
    tokens = program(params, rows)
    check_finite(np.any(tokens == decoding.NOT_FINITE))
    return tokens

  return run


def jit_score(
  model: network.Config, mesh: jax.sharding.Mesh
) -> Callable[..., np.ndarray]:
  """(params, [B, S] inputs, [B, options, T] outputs) -> [B, options] log p.

  The function raises UserError where logits are not finite.
  """

  program = score_program(model, mesh)

  def run(params, tokens, options):
    scores = np.asarray(program(params, tokens, options))
    check_finite(np.any(np.isnan(scores)))
    return scores

  return run


@functools.lru_cache(_MAX_SHARED)
def decode_program(
  model: network.Config,
  mesh: jax.sharding.Mesh,
  *,
  max_decode_len: int,
  num_beams: int,
  stop: tuple[int, ...],
) -> Callable[..., jax.Array]:
  """The compiled part of `jit_decode`; one for all that ask for the same.

  A single CPU runs the encoder and the steps as two programs, with compiler
  options for products of many and of few rows.
  """

  single_cpu = cpu_threads.is_single_cpu(mesh)
  platform_name = mesh.devices.flat[0].platform

  @platform.traced_for(platform_name)
  def prefill(params, rows):
    return network.cache(model).prefill(
      params,
      model,
      rows,
      max_decode_len=max_decode_len,
      token_shares=_CPU_TOKEN_SHARES if single_cpu else (),
    )

  @platform.traced_for(platform_name)
  def steps(params, prefilled):
    if num_beams == 1:
      return decoding.greedy_steps(params, model, prefilled, stop=stop)
    beams, scores = decoding.beam_steps(
      params, model, prefilled, num_beams=num_beams
    )
    finite = jnp.isfinite(scores[:, :1])
    return jnp.where(finite, beams[:, 0], decoding.NOT_FINITE)

  if not single_cpu:
    return _jit(lambda params, rows: steps(params, prefill(params, rows)), mesh)
  prefill = jax.jit(prefill)
  steps = jax.jit(steps, compiler_options=cpu_step_options())
  return lambda params, rows: steps(params, prefill(params, rows))


@functools.lru_cache(_MAX_SHARED)
def score_program(
  model: network.Config, mesh: jax.sharding.Mesh
) -> jax.stages.Wrapped:
  """The jitted part of `jit_score`; one for all that ask for the same."""

  @platform.traced_for(mesh.devices.flat[0].platform)
  def score(params, tokens, options):
    return decoding.score_options(
      params, model, {'encoder_input_tokens': tokens}, options_tokens=options
    )

  return _jit(score, mesh, num_batches=2)


@functools.cache
def cpu_step_options() -> dict[str, str]:
  """Options of a CPU's program of decoding steps.

  They are experimental: an XLA that does not know them gets none.
  """
  try:
    jax.jit(lambda: 0, compiler_options=_CPU_STEP_OPTIONS).lower().compile()
  except jax.errors.JaxRuntimeError:
    return {}
  return _CPU_STEP_OPTIONS


def check_finite(broken: np.bool_) -> None:
  """Raises UserError where the logits of a batch were not finite."""
  if broken:
    raise contract.UserError(
      'the logits of a batch are not finite, so that there are no answers: the'
      ' parameters of the checkpoint are damaged, or they overflow. Take'
      " another checkpoint, or ACTIVATION_DTYPE='float32'."
    )


def option_parts(options: np.ndarray, size: int) -> list[np.ndarray]:
  """[B, options, T] in parts of at most `size` >= 1 options."""
  starts = range(0, options.shape[1], size)
  return [options[:, start : start + size] for start in starts]


def _jit(function: Callable, mesh: jax.sharding.Mesh, *, num_batches: int = 1):
  """Compiles (params, *batches) for parameters where they are."""
  rows = partitioning.batch_sharding(mesh)
  replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return jax.jit(
    function,
    in_shardings=(None, *[rows] * num_batches),
    out_shardings=replicated,
  )
