# SPDX-License-Identifier: Apache-2.0
"""Soft labels: what else an LLM might have answered, of a closed set.

An LLM's server tells, for each token of a completion, its log probability and
those of the likeliest other tokens. Where the answer stands in the completion,
they become a distribution over the benchmark's labels, by their texts: the
student's tokens need not be the LLM's. With a_0 a_1 ... the tokens of the
answer and P_k = p(a_0) ... p(a_k-1) the probability of those before a_k,

  m(y) = sum over k, and over alternatives b of a_k, of
           P_k p(b) [y can go on from a_0 ... a_k-1 b] / labels that can
       + P_K [y is the answer]

up to the first K from which on only one label can go on, and q(y) = m(y) / sum
of m. A text that is a label counts for that label alone. What is not among the
alternatives, or begins no label, is left out.

Training compares the student with q at a temperature, see `core/objective`. A
label y is a path of the student's tokens. At a place on the path to the
target where labels part, the soft target is

  q(v) ~ sum over labels y that go on with v of q(y)^(1 / temperature)

Where only one label goes on there is nothing to distil, and behind a place that
the LLM gives no mass there is no soft target. Labels that differ in their first
token, such as yes and no, have one such place, and the sum of the divergences
over all places of all paths, weighted by their mass, is that of the labels.

Source: Hinton et al. 2015, arXiv:1503.02531, for soft targets at a temperature;
Kim and Rush 2016, arXiv:1606.07947, for distillation token by token. How
alternatives become labels is this project's.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# A token's text and log probability, and those of its alternatives.
Token = tuple[str, float, Mapping[str, float]]


def logprobs(found: Any) -> Sequence[Token]:
  """The tokens of an answer; () where they are missing or malformed."""
  try:
    return tuple(
      (
        str(token),
        _log_prob(own),
        {str(other): _log_prob(value) for other, value in others.items()},
      )
      for token, own, others in found or ()
    )
  except (TypeError, ValueError, AttributeError):
    return ()


def _log_prob(value: Any) -> float:
  found = float(value)
  if not found < 1e-3:  # rounding may leave 0 behind; not so NaN
    raise ValueError(f'{value!r} is no logarithm of a probability')
  return min(found, 0.0)


def at_answer(
  text: str, tokens: Sequence[Token], parse: Callable[[str], Any]
) -> list[list[Any]] | None:
  """The tokens of a completion that spell its label, as JSON values.

  Args:
    tokens: of the completion as the server wrote it, reasoning included.

  Returns:
    [text, log probability, alternatives] of each; the first text begins where
    the label begins, or with blanks before it. None where the texts of the
    tokens do not add up to the completion, or the label is not in it.
  """
  written = ''.join(token for token, _, _ in tokens)
  begin, label = written.rfind(text), parse(text).label
  place = _label_place(text, label, parse)
  if begin < 0 or place is None:
    return None
  begin += place
  kept, at = [], 0
  for token, log_prob, others in tokens:
    end = at + len(token)
    if end > begin and at < begin + len(label):
      if at < begin and token[: begin - at].strip():
        return None  # the label begins inside of a token
      kept.append([token, log_prob, dict(others)])
    at = end
  return kept


def _label_place(
  text: str, label: str, parse: Callable[[str], Any]
) -> int | None:
  """Where the label stands that is parsed, in any case; None if nowhere.

  A rationale may name it, too, and so may what follows the answer: it is the
  last of these places before which the text has not got this label yet.
  """
  if not label.strip():
    return None
  found = re.finditer(re.escape(label), text, re.IGNORECASE)
  places = [match.start() for match in found]
  while len(places) > 1 and parse(text[: places[-1]]).label == label:
    places.pop()
  return places[-1] if places else None


def distribution(
  tokens: Sequence[Token], answer: str, labels: Sequence[str]
) -> tuple[float, ...] | None:
  """The LLM's probabilities of the labels, by the formula above.

  Returns:
    One number per label, which add up to 1; None where the answer is no label,
    or another than the tokens spell (its line was edited), the server told no
    alternatives, or nothing among them is a label.
  """
  spelled = ''.join(token for token, _, _ in tokens).casefold()
  if answer not in labels or answer.casefold() not in spelled:
    return None
  if not any(others.keys() - {token} for token, _, others in tokens):
    return None
  mass = np.zeros(len(labels))
  before, path = '', 1.0
  for token, log_prob, others in tokens:
    for other, other_log_prob in others.items():
      if other == token:
        continue
      can = _can_go_on(labels, before + other)
      mass += path * math.exp(other_log_prob) * can / max(1, can.sum())
    before += token
    path *= math.exp(log_prob)
    if _can_go_on(labels, before, exact=False).sum() <= 1:
      break
  mass[labels.index(answer)] += path
  if not 0 < mass.sum() < math.inf:
    return None
  return tuple((mass / mass.sum()).tolist())


def _can_go_on(
  labels: Sequence[str], written: str, *, exact: bool = True
) -> np.ndarray:
  """[K] bool, which labels begin with a text, or the text with them.

  A text that is a label is that label alone, if `exact`.
  """
  written = written.strip().casefold()
  plain = [label.strip().casefold() for label in labels]
  if exact and written in plain:
    return np.array([label == written for label in plain])
  return np.array(
    [
      bool(written)
      and (
        label.startswith(written)
        or (written.startswith(label) and not written[len(label)].isalnum())
      )
      for label in plain
    ]
  )


@dataclasses.dataclass(frozen=True)
class SoftTargets:
  """Soft targets of every example's label, token by token.

  Attributes:
    label: [N] int64, which label the target of an example is; -1: no label of
      the set, or no soft label.
    probs: [N, K] float64, the LLM's probability of each of K labels.
    ids: [K, T, W] int32, what a path may go on with at each of its places.
    goes_on: [K, T, W, K] bool, which labels go on so; none but where two or
      more labels part.
    temperature: that q is softened by.
  """

  label: np.ndarray
  probs: np.ndarray
  ids: np.ndarray
  goes_on: np.ndarray
  temperature: float

  @property
  def num_examples(self) -> int:
    """Examples with a soft label."""
    return int((self.label >= 0).sum())

  def at(
    self, examples: np.ndarray, places: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """The soft targets of some tokens.

    Args:
      examples: [n] int64, the example of each token.
      places: [n] int64, its place in the example's target.

    Returns:
      ids: [n, W] int32.
      probs: [n, W] float32, which add up to 1, or are 0 without a soft target.
    """
    label = self.label[examples]
    inside = (label >= 0) & (places < self.ids.shape[1])
    label, places = np.where(inside, label, 0), np.where(inside, places, 0)
    softened = self.probs[examples] ** (1.0 / self.temperature)
    goes_on = self.goes_on[label, places] & inside[:, None, None]
    mass = np.einsum('nwk,nk->nw', goes_on, softened)
    total = mass.sum(axis=1, keepdims=True)
    probs = np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)
    return self.ids[label, places], probs.astype(np.float32)


def soft_targets(
  targets: Sequence[Sequence[int]],
  probs: Sequence[Sequence[float]],
  label_ids: Sequence[Sequence[int]],
  *,
  temperature: float,
) -> SoftTargets:
  """The soft targets of examples whose targets are labels.

  Args:
    targets: decoder ids of each example.
    probs: the LLM's probability of each label, () where there is none.
    label_ids: decoder ids of each label, with their end.
  """
  paths = [tuple(map(int, ids)) for ids in label_ids]
  number = {path: k for k, path in enumerate(paths)}
  found = [number.get(tuple(map(int, target)), -1) for target in targets]
  known = np.array([len(each) == len(paths) for each in probs], bool)
  filled = [
    p if k else [0.0] * len(paths) for p, k in zip(probs, known, strict=True)
  ]
  longest = max(map(len, paths))
  choices = [
    [
      sorted({p[t] for p in paths if p[:t] == path[:t] and len(p) > t})
      for t in range(len(path))
    ]
    for path in paths
  ]
  width = max(len(ids) for places in choices for ids in places)
  ids = np.zeros((len(paths), longest, width), np.int32)
  goes_on = np.zeros((*ids.shape, len(paths)), bool)
  for k, (path, places) in enumerate(zip(paths, choices, strict=True)):
    for t, some in enumerate(places):
      if len(some) < 2:
        continue
      ids[k, t, : len(some)] = some
      for w, token in enumerate(some):
        goes_on[k, t, w] = [p[: t + 1] == (*path[:t], token) for p in paths]
  return SoftTargets(
    label=np.where(known, np.array(found, np.int64), -1),
    probs=np.array(filled, np.float64).reshape(len(targets), len(paths)),
    ids=ids,
    goes_on=goes_on,
    temperature=temperature,
  )
