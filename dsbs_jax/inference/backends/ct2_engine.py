# SPDX-License-Identifier: Apache-2.0
"""CTranslate2 in place of our jitted functions: greedy outputs, scores.

Ids are the model's tokens, as numerals (`ct2_cache`). In float32 outputs are
the built-in engine's, and log probabilities equal to rounding. Two things
differ: an input is encoded once for every output that is scored, where the
built-in engine encodes it once, except that what was generated has its score
already; and an id 0 within an input is read, not masked.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dsbs_jax import contract
from dsbs_jax.inference.backends import cpu_threads, decode_functions

# Log p of outputs: (row, ids) -> log p.
_Known = dict[tuple[int, tuple[int, ...]], float]


class Engine:
  """A loaded model; UserError where its logits are not finite.

  Args:
    folder: as `interop.ct2_model` writes it, its tokens the ids as numerals.
    compute_type: 'float32' or 'int8_float32'.
    num_threads: None takes the cores that this process may use.
  """

  def __init__(
    self,
    folder: str,
    *,
    compute_type: str,
    vocab_size: int,
    num_threads: int | None = None,
  ):
    import ctranslate2

    self.num_threads = num_threads or cpu_threads.usable_cores()
    # T5 small on two cores, rows/s at 8 and 64 tokens: two threads of a batch
    # 38.3 and 7.1 in int8 (float32 39.1 and 10.2), a thread for each half of it
    # 64.5 and 17.5 (34.3 and 8.8). The threads share the weights.
    self._num_parts = self.num_threads if 'int8' in compute_type else 1
    self._vocab_size = vocab_size
    self._names = [str(token) for token in range(vocab_size)]
    self._translator = ctranslate2.Translator(
      folder,
      compute_type=compute_type,
      inter_threads=self._num_parts,
      intra_threads=self.num_threads // self._num_parts,
    )

  def generate(
    self,
    tokens: np.ndarray,
    *,
    max_decode_len: int,
    stop: tuple[int, ...] = (),
  ) -> tuple[np.ndarray, np.ndarray]:
    """Takes the most likely token at every position.

    Args:
      tokens: [B, S] int32, the inputs; rows of zeros get no output.
      max_decode_len: L, tokens at most, the end token included.
      stop: an output also ends once its last tokens are these.

    Returns:
      [B, L] int32, 0 after the end; and [B] float32, log p of each output.
    """
    rows = [i for i, row in enumerate(tokens) if row.any()]
    outputs = np.zeros((len(tokens), max_decode_len), np.int32)
    scores = np.zeros(len(tokens), np.float32)
    if not rows:
      return outputs, scores
    results = self._translator.translate_batch(
      [self._input(tokens[i]) for i in rows],
      max_batch_size=self._part(len(rows)),
      beam_size=1,
      length_penalty=0,  # the score is a sum, not a mean
      max_input_length=0,
      min_decoding_length=0,  # the end may come first
      max_decoding_length=max_decode_len,
      return_end_token=True,
      return_scores=True,
      callback=_stop_callback(stop) if stop else None,
    )
    for i, result in zip(rows, results, strict=True):
      ids = [int(name) for name in result.hypotheses[0]]
      outputs[i, : len(ids)] = ids
      scores[i] = result.scores[0]
    decode_functions.check_finite(not np.isfinite(scores).all())
    return outputs, scores

  def score_options(
    self,
    tokens: np.ndarray,
    options: np.ndarray,
    *,
    known: _Known | None = None,
  ) -> np.ndarray:
    """Scores given outputs.

    Args:
      tokens: [B, S] int32, the inputs.
      options: [B, options, T] int32, outputs, 0 padded.
      known: scores that need not be computed.

    Returns:
      [B, options] float32, log p of each option, -inf for an empty one.
    """
    outputs = [[_unpad(ids) for ids in row] for row in options.tolist()]
    known = dict(known or {})
    longest = [
      (i, ids)
      for i, row in enumerate(outputs)
      for ids in _longest({x for x in row if x and (i, x) not in known})
    ]
    length = options.shape[2]
    results = self._translator.score_batch(
      [self._input(tokens[i]) for i, _ in longest],
      [self._target(ids) for _, ids in longest],
      max_input_length=0,
      max_batch_size=min(
        self._part(len(longest)),
        max(1, decode_functions.MAX_LOGITS // (length * self._vocab_size)),
      ),
    )
    for (i, ids), result in zip(longest, results, strict=True):
      sums = np.cumsum(np.float64(result.log_probs)).tolist()
      for end in range(1, len(ids) + 1):
        known.setdefault((i, ids[:end]), sums[end - 1])
    scores = [
      [known[i, ids] if ids else -np.inf for ids in row]
      for i, row in enumerate(outputs)
    ]
    scores = np.array(scores, np.float32).reshape(options.shape[:2])
    decode_functions.check_finite(np.isnan(scores).any())
    return scores

  def decode_fn(
    self, *, max_decode_len: int, stop: tuple[int, ...]
  ) -> Callable[[Any, Mapping[str, Any]], np.ndarray]:
    """`decode_functions.jit_decode` by this engine, with its own parameters."""

    def run(params, rows):
      del params
      tokens = np.asarray(rows['encoder_input_tokens'])
      return self.generate(tokens, max_decode_len=max_decode_len, stop=stop)[0]

    return run

  def score_fn(self, params: Any, tokens: Any, options: Any) -> np.ndarray:
    """`decode_functions.jit_score` by this engine, with its own parameters."""
    del params
    return self.score_options(np.asarray(tokens), np.asarray(options))

  def _part(self, num_rows: int) -> int:
    """Rows of a batch that go through the model together."""
    return max(1, -(-num_rows // self._num_parts))

  def _input(self, row: np.ndarray) -> list[str]:
    return [self._names[token] for token in _unpad(row.tolist())]

  def _target(self, ids: Sequence[int]) -> list[str]:
    """CTranslate2 adds an end token."""
    ended = ids[-1] == contract.EOS_ID
    return [self._names[token] for token in (ids[:-1] if ended else ids)]


class DecodeFns:
  """`decode_functions.DecodeFns` by CTranslate2; arrays as there."""

  is_compiled = False

  def __init__(
    self,
    engine: Engine,
    *,
    max_decode_len: int,
    max_rationale_len: int,
    stop: tuple[int, ...] = (),
  ):
    self._engine, self._stop = engine, stop
    self._max_decode_len = max_decode_len
    self._max_rationale_len = max_rationale_len
    # The inputs of the last batch, and what was generated from them.
    self._last: tuple[Any, _Known] = (None, {})

  def round_up_rows(self, num: int) -> int:
    """Any number of rows will do."""
    return num

  def generate(self, tokens: np.ndarray) -> np.ndarray:
    outputs, scores = self._engine.generate(
      tokens, max_decode_len=self._max_decode_len, stop=self._stop
    )
    found = zip(outputs.tolist(), scores.tolist(), strict=True)
    known = {(i, _unpad(ids)): score for i, (ids, score) in enumerate(found)}
    self._last = tokens, known
    return outputs

  def generate_rationale(self, tokens: np.ndarray) -> np.ndarray:
    return self._engine.generate(
      tokens, max_decode_len=self._max_rationale_len
    )[0]

  def score_options(
    self, tokens: np.ndarray, options: np.ndarray
  ) -> np.ndarray:
    """As `Engine.score_options`; outputs just generated are known."""
    inputs, known = self._last
    return self._engine.score_options(
      tokens, options, known=known if inputs is tokens else None
    )


def _unpad(ids: Sequence[int]) -> tuple[int, ...]:
  """Ids without the zeros behind them."""
  end = len(ids)
  while end and not ids[end - 1]:
    end -= 1
  return tuple(ids[:end])


def _longest(outputs: set[tuple[int, ...]]) -> list[tuple[int, ...]]:
  """Those that are not the beginning of another one."""
  ordered = sorted(outputs)  # what begins with an output stands behind it
  return [
    ids
    for ids, after in itertools.pairwise([*ordered, ()])
    if after[: len(ids)] != ids
  ]


def _stop_callback(stop: tuple[int, ...]) -> Callable[[Any], bool]:
  """Ends an output whose last tokens are `stop`."""
  written: dict[int, list[int]] = {}

  def ends(step: Any) -> bool:
    ids = written.setdefault(step.batch_id, [])
    ids.append(step.token_id)
    return tuple(ids[-len(stop) :]) == stop

  return ends
