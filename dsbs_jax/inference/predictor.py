# SPDX-License-Identifier: Apache-2.0
"""What infer and serve predict: label, its probability, rationale.

The probability of a label is its share of the closed set where there is one:
the benchmark's labels, or the input's own choices; a text outside of the set
has 0. A free label has exp(sum of log p) of its tokens, the end included. What
a student writes before the label (`_single`) is given, not counted; what it
writes behind it (`_answer_first`) is generated only if it is asked for.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.data import task_forms
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.inference import input_lines, length_buckets, output_split
from dsbs_jax.inference.backends import ct2_engine, decode_functions


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorConfig:
  """How to predict.

  Attributes:
    task: a `_finetune`, `_label`, `_single` or `_answer_first` task.
    labels: the closed set of labels, () for free ones.
    max_decode_len: the others are those of `student_config.StudentConfig`.
  """

  task: str
  model: network.Config
  prefixes: task_forms.Prefixes
  labels: tuple[str, ...] = ()
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
  def has_rationale_task(self) -> bool:
    """Whether rationales come from a task of their own, decoded apart."""
    return self.rationales and self.form not in task_forms.MARKERS

  @property
  def generates_labels(self) -> bool:
    """Whether labels, or the text before them, are decoded."""
    return not self.score_labels or self.form == 'single'


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a student predicts for an input.

  Attributes:
    probability: of the label, see above.
    rationale: None where it was not asked for.
    cut: whether label or rationale reached its maximal length unfinished.
  """

  label: str
  probability: float
  rationale: str | None = None
  cut: bool = False


class Predictor:
  """Predicts for inputs, in batches of few shapes."""

  def __init__(
    self,
    config: PredictorConfig,
    decode_fns: decode_functions.DecodeFns | ct2_engine.DecodeFns,
    *,
    vocabulary: vocabularies.Vocabulary,
    shapes: length_buckets.BatchShapes,
  ):
    self._config, self._decode_fns = config, decode_fns
    self._vocabulary, self._shapes = vocabulary, shapes

  def num_tokens(self, inputs: Sequence[input_lines.ModelInput]) -> list[int]:
    """Tokens of each input as a task reads it, prefix and end included.

    Where labels and rationales have tasks of their own, of the longer one.
    """
    texts = [one.text for one in inputs]
    input_forms = [self._config.form]
    if self._config.has_rationale_task:
      input_forms.append('rationale')
    ids = [self._input_ids(texts, form) for form in input_forms]
    return [max(map(len, own)) for own in zip(*ids, strict=True)]

  def predict_batches(
    self, inputs: Sequence[input_lines.ModelInput], *, rationales: bool = True
  ) -> Iterator[tuple[np.ndarray, list[Prediction]]]:
    """Predicts batch by batch, long inputs first.

    Args:
      rationales: whether rationales are wanted where the config has them.

    Yields:
      Per batch, positions in `inputs` [n] int, and the predictions for them.
    """
    ids = self._input_ids([one.text for one in inputs], self._config.form)
    order = np.argsort([-len(row) for row in ids], kind='stable')
    for first in range(0, len(order), self._shapes.max_rows):
      positions = order[first : first + self._shapes.max_rows]
      batch = [inputs[position] for position in positions]
      predictions = self._predict_labels(
        self._pad([ids[position] for position in positions]), batch
      )
      if rationales and self._config.has_rationale_task:
        predictions = self._add_rationales(predictions, batch)
      yield positions, predictions

  def predict(
    self, inputs: Sequence[input_lines.ModelInput], *, rationales: bool = True
  ) -> list[Prediction]:
    """Predicts for all inputs, in their order."""
    found = {}
    for positions, predictions in self.predict_batches(
      inputs, rationales=rationales
    ):
      found |= dict(zip(positions.tolist(), predictions, strict=True))
    return [found[i] for i in range(len(inputs))]

  def _input_ids(self, texts: Sequence[str], form: str) -> list[list[int]]:
    prefix = self._config.prefixes.of(form)
    return self._vocabulary.encode_inputs([prefix + text for text in texts])

  def _pad(self, ids: Sequence[list[int]]) -> np.ndarray:
    """[B, S] int32, both rounded up to a shape of the batches."""
    length = self._shapes.input_length(max(map(len, ids)))
    num_rows = self._decode_fns.round_up_rows(self._shapes.batch_size(len(ids)))
    tokens = np.zeros((num_rows, length), np.int32)
    for row, own in zip(tokens, ids, strict=False):
      row[: len(own)] = own
    return tokens

  def _add_rationales(
    self, predictions: list[Prediction], batch: Sequence[input_lines.ModelInput]
  ) -> list[Prediction]:
    """Decodes the rationale task for inputs whose labels are predicted."""
    ids = self._input_ids([one.text for one in batch], 'rationale')
    outputs = self._decode_fns.generate_rationale(self._pad(ids)).tolist()
    return [
      dataclasses.replace(
        prediction,
        rationale=self._vocabulary.decode(row),
        cut=prediction.cut or contract.EOS_ID not in row,
      )
      for prediction, row in zip(predictions, outputs, strict=False)
    ]

  def _predict_labels(
    self, tokens: np.ndarray, batch: Sequence[input_lines.ModelInput]
  ) -> list[Prediction]:
    config = self._config
    end = output_split.end_ids(config.form, vocabulary=self._vocabulary)
    outputs = [output_split.SplitOutput([], [], end_ids=end)] * len(batch)
    cut = [False] * len(batch)
    if config.generates_labels:
      generated = self._decode_fns.generate(tokens).tolist()[: len(batch)]
      outputs = [
        output_split.split(row, config.form, vocabulary=self._vocabulary)
        for row in generated
      ]
      # Without rationales, decoding stops at the marker before them.
      cut = [
        contract.EOS_ID not in row
        and (config.rationales or tuple(output.label_ids[-len(end) :]) != end)
        for row, output in zip(generated, outputs, strict=True)
      ]
    choices = [one.choices or config.labels for one in batch]
    options = [
      output_split.option_ids(output, own, vocabulary=self._vocabulary)
      for output, own in zip(outputs, choices, strict=True)
    ]
    scores = self._score(tokens, options)
    return [
      dataclasses.replace(self._prediction(*parts), cut=was_cut)
      for was_cut, *parts in zip(cut, outputs, choices, scores, strict=True)
    ]

  def _score(
    self, tokens: np.ndarray, options: Sequence[Sequence[list[int]]]
  ) -> np.ndarray:
    """log p of options, [rows, options]; 0 for a free label's empty one."""
    num_options = self._shapes.num_options(max(map(len, options)))
    longest = max(len(ids) for own in options for ids in own)
    shape = len(tokens), num_options, self._shapes.target_length(longest)
    padded = output_split.pad_options(options, shape)
    return self._decode_fns.score_options(tokens, padded)[: len(options)]

  def _prediction(
    self,
    output: output_split.SplitOutput,
    choices: Sequence[str],
    scores: np.ndarray,
  ) -> Prediction:
    config = self._config
    rationale = output.rationale if config.rationales else None
    if config.form == 'single':  # its marker is in the prefix
      label = self._vocabulary.decode(output.label_ids).strip()
    else:
      label = task_forms.decode_answer(
        config.task, output.label_ids, vocabulary=self._vocabulary
      )
    if not config.score_labels and not output.label_ids:
      return Prediction('', 0.0, rationale)  # `_single`, cut before its label
    if not choices:
      prefix = float(scores[1]) if output.prefix_ids else 0.0
      return Prediction(label, math.exp(float(scores[0]) - prefix), rationale)
    scores = scores[: len(choices)].astype(np.float64)
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    if config.score_labels:
      best = int(np.argmax(shares))
      return Prediction(choices[best], float(shares[best]), rationale)
    for choice, share in zip(choices, shares, strict=True):
      if task_forms.round_trip(choice, vocabulary=self._vocabulary) == label:
        return Prediction(label, float(share), rationale)
    return Prediction(label, 0.0, rationale)
