# SPDX-License-Identifier: Apache-2.0
"""The programs of a student: generate a label, explain it, score outputs.

Each is compiled once per shape of its batch, when that shape first occurs.
"""

import functools
from typing import Any

import jax
import numpy as np

from dsbs_jax.core import decoding, partitioning
from dsbs_jax.core.t5 import network
from dsbs_jax.inference import cpu_threads

# Logits that exist at once while options are scored: 1 GiB in float32.
_MAX_LOGITS = 1 << 28


class DecodeFns:
  """A student's parameters, and what is computed with them.

  Args:
    model: the network.
    params: its parameters.
    mesh: the devices.
    param_shardings: a sharding per parameter.
    max_decode_len: tokens to generate at most for a label.
    max_rationale_len: tokens to generate at most for a rationale.
    num_beams: 1 for greedy decoding; rationales are decoded greedily.
    stop: ids behind which a label is whole though its output is not; beams
      go on.
  """

  def __init__(
    self,
    model: network.T5Config,
    params: Any,
    *,
    mesh: jax.sharding.Mesh,
    param_shardings: Any,
    max_decode_len: int,
    max_rationale_len: int,
    num_beams: int = 1,
    stop: tuple[int, ...] = (),
  ):
    self._params, self._vocab_size = params, model.vocab_size
    self._shards = mesh.shape[partitioning.DATA_AXIS]
    sharding = partitioning.batch_sharding(mesh)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def jit(function, num_batches=1):
      return jax.jit(
        function,
        in_shardings=(param_shardings, *[sharding] * num_batches),
        out_shardings=replicated,
      )

    decode = functools.partial(_decode, model=model)
    self._generate, self._explain = (
      cpu_threads.per_core(jit(functools.partial(decode, **options)), mesh)
      for options in (
        {'length': max_decode_len, 'num_beams': num_beams, 'stop': stop},
        {'length': max_rationale_len},
      )
    )
    self._score = jit(
      lambda params, batch, tokens: decoding.score_options(
        params,
        model,
        {'encoder_input_tokens': batch},
        options_tokens=tokens,
      ),
      num_batches=2,
    )

  def divisible(self, rows: int) -> int:
    """The next number of rows that all devices share evenly."""
    return -(-rows // self._shards) * self._shards

  def generate(self, batch: np.ndarray) -> np.ndarray:
    """Outputs of the label task.

    Args:
      batch: [rows, length] int32, the inputs; rows as `divisible` gives them.

    Returns:
      [rows, max_decode_len] int32, 0 after the end token.
    """
    return self._generate(self._params, batch)

  def explain(self, batch: np.ndarray) -> np.ndarray:
    """The same of the rationale task, up to `max_rationale_len` tokens."""
    return self._explain(self._params, batch)

  def score(self, batch: np.ndarray, options: np.ndarray) -> np.ndarray:
    """Scores given outputs, in parts where their logits would not fit.

    Args:
      batch: [rows, length] int32, the inputs.
      options: [rows, C, T] int32, outputs with their end token, 0 padded.

    Returns:
      [rows, C] float32, log p of each option, -inf for an empty one.
    """
    whole = rows = len(batch)
    logits = options.shape[1] * options.shape[2] * self._vocab_size
    while rows * logits > _MAX_LOGITS and rows % (2 * self._shards) == 0:
      rows //= 2
    return np.concatenate(
      [
        np.asarray(
          self._score(self._params, batch[i : i + rows], options[i : i + rows])
        )
        for i in range(0, whole, rows)
      ]
    )


def _decode(
  params: Any,
  batch: jax.Array,
  *,
  model: network.T5Config,
  length: int,
  num_beams: int = 1,
  stop: tuple[int, ...] = (),
) -> jax.Array:
  rows = {'encoder_input_tokens': batch}
  if num_beams == 1:
    return decoding.greedy(
      params, model, rows, max_decode_len=length, stop=stop
    )
  beams, _ = decoding.beam_search(
    params, model, rows, num_beams=num_beams, max_decode_len=length
  )
  return beams[:, 0]
