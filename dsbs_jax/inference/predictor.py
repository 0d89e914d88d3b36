# SPDX-License-Identifier: Apache-2.0
"""A student's answers to questions: label, how sure it is, why.

The probability of a label is that among the closed set where there is one:
the benchmark's labels, or the row's own choices; a text outside of the set
has 0. Free labels have exp(sum of log p) of their tokens, the end included.
What a student writes before the label (`_single`) is given, not counted; what
it writes behind it (`_answer_first`) is written only if it is asked for.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from dsbs_jax import contract
from dsbs_jax.core.t5 import network
from dsbs_jax.data import forms, vocabularies
from dsbs_jax.inference import (
  decode_functions,
  input_lines,
  length_buckets,
  output_split,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorConfig:
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

  @property
  def explains_apart(self) -> bool:
    """Whether rationales come from a task of their own."""
    return self.rationales and self.form not in forms.MARKERS


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a student says.

  Attributes:
    label: what it answers.
    probability: how sure it is.
    rationale: why; None where that was not asked.
    cut: whether label or rationale ran into its longest length.
  """

  label: str
  probability: float
  rationale: str | None = None
  cut: bool = False


class Predictor:
  """Answers questions in batches of few shapes.

  Args:
    settings: see `PredictorConfig`.
    programs: of the student.
    vocabulary: of the checkpoint.
    shapes: of the batches; `settings.batch_size` rows of any length if None.
  """

  def __init__(
    self,
    settings: PredictorConfig,
    programs: decode_functions.DecodeFns,
    *,
    vocabulary: vocabularies.Vocabulary,
    shapes: length_buckets.BatchShapes | None = None,
  ):
    self._settings, self._programs = settings, programs
    self._vocabulary = vocabulary
    self._shapes = shapes or length_buckets.LengthBuckets(settings.batch_size)

  def lengths(self, questions: Sequence[input_lines.ModelInput]) -> list[int]:
    """Tokens of each question's longest input, prefix and end included."""
    texts = [question.text for question in questions]
    forms_asked = [self._settings.form]
    if self._settings.explains_apart:
      forms_asked.append('rationale')
    inputs = [self._input_ids(texts, form) for form in forms_asked]
    return [max(map(len, own)) for own in zip(*inputs, strict=True)]

  def answer(
    self,
    questions: Sequence[input_lines.ModelInput],
    *,
    rationales: bool = True,
  ) -> Iterator[tuple[np.ndarray, list[Prediction]]]:
    """Answers questions, those with long inputs first.

    Args:
      questions: what to answer.
      rationales: whether rationales are wanted where the settings have them.

    Yields:
      Per batch, positions in `questions` and the answers to them.
    """
    texts = [question.text for question in questions]
    ids = self._input_ids(texts, self._settings.form)
    order = np.argsort([-len(row) for row in ids], kind='stable')
    for first in range(0, len(order), self._shapes.max_rows):
      positions = order[first : first + self._shapes.max_rows]
      asked = [questions[position] for position in positions]
      answers = self._labels(self._batch([ids[p] for p in positions]), asked)
      if rationales and self._settings.explains_apart:
        answers = self._explained(answers, asked)
      yield positions, answers

  def answer_all(
    self,
    questions: Sequence[input_lines.ModelInput],
    *,
    rationales: bool = True,
  ) -> list[Prediction]:
    """The same, all at once and in the order of the questions."""
    answers = {}
    for positions, given in self.answer(questions, rationales=rationales):
      answers |= dict(zip(positions.tolist(), given, strict=True))
    return [answers[i] for i in range(len(questions))]

  def _input_ids(self, texts: Sequence[str], form: str) -> list[list[int]]:
    prefix = self._settings.prefixes.of(form)
    encoded = self._vocabulary.encode_all([prefix + text for text in texts])
    return [[*row, contract.EOS_ID] for row in encoded]

  def _batch(self, ids: Sequence[list[int]]) -> np.ndarray:
    width = self._shapes.inputs(max(map(len, ids)))
    num_rows = self._programs.divisible(self._shapes.rows(len(ids)))
    rows = np.zeros((num_rows, width), np.int32)
    for row, own in zip(rows, ids, strict=False):
      row[: len(own)] = own
    return rows

  def _explained(
    self, answers: list[Prediction], asked: Sequence[input_lines.ModelInput]
  ) -> list[Prediction]:
    """The answers with the rationales that the rationale task gives."""
    texts = [question.text for question in asked]
    batch = self._batch(self._input_ids(texts, 'rationale'))
    written = self._programs.explain(batch).tolist()
    return [
      dataclasses.replace(
        given,
        rationale=self._vocabulary.decode(row),
        cut=given.cut or contract.EOS_ID not in row,
      )
      for given, row in zip(answers, written, strict=False)
    ]

  def _labels(
    self, batch: np.ndarray, asked: Sequence[input_lines.ModelInput]
  ) -> list[Prediction]:
    settings = self._settings
    end = output_split.end_ids(settings.form, vocabulary=self._vocabulary)
    written = [output_split.SplitOutput([], [], end_ids=end)] * len(asked)
    cut = [False] * len(asked)
    if not settings.score_labels or settings.form == 'single':
      tokens = self._programs.generate(batch).tolist()[: len(asked)]
      written = [
        output_split.split(row, settings.form, vocabulary=self._vocabulary)
        for row in tokens
      ]
      # A student that was not asked why ends at the marker before it.
      cut = [
        contract.EOS_ID not in row
        and (settings.rationales or tuple(draft.label_ids[-len(end) :]) != end)
        for row, draft in zip(tokens, written, strict=True)
      ]
    choices = [question.choices or settings.labels for question in asked]
    options = [
      output_split.option_ids(draft, own, vocabulary=self._vocabulary)
      for draft, own in zip(written, choices, strict=True)
    ]
    scores = self._scores(batch, options)
    return [
      dataclasses.replace(self._conclude(*parts), cut=was_cut)
      for was_cut, *parts in zip(cut, written, choices, scores, strict=True)
    ]

  def _scores(
    self, batch: np.ndarray, options: Sequence[Sequence[list[int]]]
  ) -> np.ndarray:
    """[rows, C] log p of options, 0 for the empty one of a free label."""
    num_options = self._shapes.options(max(map(len, options)))
    longest = max(len(ids) for own in options for ids in own)
    length = self._shapes.targets(longest)
    tokens = np.zeros((len(batch), num_options, length), np.int32)
    for row, own in zip(tokens, options, strict=False):
      for place, ids in zip(row, own, strict=False):
        place[: len(ids)] = ids
    return self._programs.score(batch, tokens)[: len(options)]

  def _conclude(
    self,
    draft: output_split.SplitOutput,
    choices: Sequence[str],
    scores: np.ndarray,
  ) -> Prediction:
    settings = self._settings
    rationale = draft.rationale if settings.rationales else None
    said = self._vocabulary.decode(draft.label_ids)
    if settings.form == 'answer_first':
      said = forms.answer(settings.task, said, vocabulary=self._vocabulary)
    said = said.strip() if settings.form == 'single' else said
    if not settings.score_labels and not draft.label_ids:
      return Prediction('', 0.0, rationale)  # a `_single` output without label
    if not choices:
      given = float(scores[1]) if draft.prefix_ids else 0.0
      return Prediction(said, math.exp(float(scores[0]) - given), rationale)
    scores = scores[: len(choices)].astype(np.float64)
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    if settings.score_labels:
      best = int(np.argmax(shares))
      return Prediction(choices[best], float(shares[best]), rationale)
    for choice, share in zip(choices, shares, strict=True):
      written = forms.round_trip(choice, vocabulary=self._vocabulary)
      if written == said:
        return Prediction(said, float(share), rationale)
    return Prediction(said, 0.0, rationale)
