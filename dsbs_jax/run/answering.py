# SPDX-License-Identifier: Apache-2.0
"""A student's answers to questions: label, how sure it is, why.

The probability of a label is that among the closed set where there is one:
the benchmark's labels, or the row's own choices; a text outside of the set
has 0. Free labels have exp(sum of log p) of their tokens, the end included.
What a student writes before the label (`_single`) is given, not counted.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import decoding, network, partitioning
from dsbs_jax.data import forms, vocabularies
from dsbs_jax.run import drafts
from dsbs_jax.run import questions as questions_lib

# Logits that exist at once while options are scored: 1 GiB in float32.
_MAX_LOGITS = 1 << 28
_SHORTEST_INPUT, _SHORTEST_TARGET = 16, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answering:
  """How to answer.

  Attributes:
    task: a `_finetune`, `_label` or `_single` task.
    model: the network.
    prefixes: what stands before the inputs.
    labels: the closed set of labels, () for free ones.
    batch_size: rows per batch over all devices.
    max_decode_len: tokens to generate at most for a label.
    max_rationale_len: tokens to generate at most for a rationale.
    num_beams: 1 for greedy decoding; rationales are decoded greedily.
    rationales: whether to ask for rationales too.
    score_labels: whether to choose the likeliest label of the closed set
      rather than generating one.
  """

  task: str
  model: network.T5Config
  prefixes: forms.Prefixes
  labels: tuple[str, ...] = ()
  batch_size: int = 128
  max_decode_len: int = 64
  max_rationale_len: int = 256
  num_beams: int = 1
  rationales: bool = False
  score_labels: bool = False

  @property
  def form(self) -> str:
    """The form of the task."""
    return contract.parse_task_name(self.task).form


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a student says; `rationale` is None where none was asked for."""

  label: str
  probability: float
  rationale: str | None = None


class Answerer:
  """Answers questions in batches of few shapes; compiles once per shape.

  Args:
    settings: see `Answering`.
    params: the parameters.
    vocabulary: of the checkpoint.
    mesh: the devices.
    param_shardings: a sharding per parameter.
  """

  def __init__(
    self,
    settings: Answering,
    params: Any,
    *,
    vocabulary: vocabularies.Vocabulary,
    mesh: jax.sharding.Mesh,
    param_shardings: Any,
  ):
    self._settings, self._params = settings, params
    self._vocabulary = vocabulary
    self._shards = mesh.shape[partitioning.DATA_AXIS]
    self._rows = -(-settings.batch_size // self._shards) * self._shards
    self._sharding = partitioning.batch_sharding(mesh)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def jit(function, num_batches=1):
      return jax.jit(
        function,
        in_shardings=(param_shardings, *[self._sharding] * num_batches),
        out_shardings=replicated,
      )

    decode = functools.partial(_decode, model=settings.model)
    self._generate = jit(
      functools.partial(
        decode, length=settings.max_decode_len, num_beams=settings.num_beams
      )
    )
    self._explain = jit(
      functools.partial(decode, length=settings.max_rationale_len)
    )
    self._score = jit(
      lambda params, batch, tokens: decoding.score_options(
        params,
        settings.model,
        {'encoder_input_tokens': batch},
        options_tokens=tokens,
      ),
      num_batches=2,
    )

  def lengths(self, questions: Sequence[questions_lib.Question]) -> list[int]:
    """Tokens of each question's input, the prefix and the end included."""
    texts = [question.text for question in questions]
    return [len(ids) for ids in self._input_ids(texts, self._settings.form)]

  def answer(
    self, questions: Sequence[questions_lib.Question]
  ) -> Iterator[tuple[np.ndarray, list[Answer]]]:
    """Answers questions, those with long inputs first.

    Args:
      questions: what to answer.

    Yields:
      Per batch, positions in `questions` and the answers to them.
    """
    texts = [question.text for question in questions]
    ids = self._input_ids(texts, self._settings.form)
    order = np.argsort([-len(row) for row in ids], kind='stable')
    for first in range(0, len(order), self._rows):
      positions = order[first : first + self._rows]
      asked = [questions[position] for position in positions]
      answers = self._labels(self._batch([ids[p] for p in positions]), asked)
      yield positions, self._explained(answers, asked)

  def _input_ids(self, texts: Sequence[str], form: str) -> list[list[int]]:
    prefix = self._settings.prefixes.of(form)
    encoded = self._vocabulary.encode_all([prefix + text for text in texts])
    return [[*row, contract.EOS_ID] for row in encoded]

  def _batch(self, ids: Sequence[list[int]]) -> np.ndarray:
    width = rung(max(map(len, ids)), _SHORTEST_INPUT)
    rows = np.zeros((self._rows, width), np.int32)
    for row, own in zip(rows, ids, strict=False):
      row[: len(own)] = own
    return rows

  def _explained(
    self, answers: list[Answer], asked: Sequence[questions_lib.Question]
  ) -> list[Answer]:
    """The answers with the rationales that the rationale task gives."""
    if not self._settings.rationales or self._settings.form == 'single':
      return answers
    texts = [question.text for question in asked]
    batch = self._batch(self._input_ids(texts, 'rationale'))
    tokens = np.asarray(self._explain(self._params, batch))
    return [
      dataclasses.replace(given, rationale=self._vocabulary.decode(row))
      for given, row in zip(answers, tokens.tolist(), strict=False)
    ]

  def _labels(
    self, batch: np.ndarray, asked: Sequence[questions_lib.Question]
  ) -> list[Answer]:
    settings = self._settings
    written = [drafts.Draft([], [])] * len(asked)
    if not settings.score_labels or settings.form == 'single':
      tokens = np.asarray(self._generate(self._params, batch)).tolist()
      written = [
        drafts.split(row, settings.form, vocabulary=self._vocabulary)
        for row in tokens[: len(asked)]
      ]
    choices = [question.choices or settings.labels for question in asked]
    options = [
      drafts.options(draft, own, vocabulary=self._vocabulary)
      for draft, own in zip(written, choices, strict=True)
    ]
    scores = self._scores(batch, options)
    return [
      self._conclude(*parts)
      for parts in zip(written, choices, scores, strict=True)
    ]

  def _scores(
    self, batch: np.ndarray, options: Sequence[Sequence[list[int]]]
  ) -> np.ndarray:
    """[rows, C] log p of options, 0 for the empty one of a free label."""
    num_options = max(map(len, options))
    longest = max(len(ids) for own in options for ids in own)
    length = rung(longest, _SHORTEST_TARGET)
    tokens = np.zeros((self._rows, num_options, length), np.int32)
    for row, own in zip(tokens, options, strict=False):
      for place, ids in zip(row, own, strict=False):
        place[: len(ids)] = ids
    rows, logits = self._rows, num_options * length
    logits *= self._settings.model.vocab_size
    while rows * logits > _MAX_LOGITS and rows % (2 * self._shards) == 0:
      rows //= 2
    scores = np.concatenate(
      [
        np.asarray(
          self._score(self._params, batch[i : i + rows], tokens[i : i + rows])
        )
        for i in range(0, self._rows, rows)
      ]
    )
    return scores[: len(options)]

  def _conclude(
    self, draft: drafts.Draft, choices: Sequence[str], scores: np.ndarray
  ) -> Answer:
    settings = self._settings
    rationale = draft.rationale if settings.rationales else None
    said = self._vocabulary.decode(draft.said)
    said = said.strip() if settings.form == 'single' else said
    if not settings.score_labels and not draft.said:
      return Answer('', 0.0, rationale)  # a `_single` output without label
    if not choices:
      given = float(scores[1]) if draft.stem else 0.0
      return Answer(said, math.exp(float(scores[0]) - given), rationale)
    scores = scores[: len(choices)].astype(np.float64)
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    if settings.score_labels:
      best = int(np.argmax(shares))
      return Answer(choices[best], float(shares[best]), rationale)
    for choice, share in zip(choices, shares, strict=True):
      written = forms.round_trip(choice, vocabulary=self._vocabulary)
      if written == said:
        return Answer(said, float(share), rationale)
    return Answer(said, 0.0, rationale)


def _decode(
  params: Any,
  batch: jax.Array,
  *,
  model: network.T5Config,
  length: int,
  num_beams: int = 1,
) -> jax.Array:
  rows = {'encoder_input_tokens': batch}
  if num_beams == 1:
    return decoding.greedy(params, model, rows, max_decode_len=length)
  beams, _ = decoding.beam_search(
    params, model, rows, num_beams=num_beams, max_decode_len=length
  )
  return beams[:, 0]


def rung(length: int, shortest: int) -> int:
  """The next of the lengths n, 1.5 n, 2 n, 3 n, 4 n, ... at or above."""
  while shortest < length:
    if shortest * 3 // 2 >= length:
      return shortest * 3 // 2
    shortest *= 2
  return shortest
