# SPDX-License-Identifier: Apache-2.0
"""The tokens of all examples that batches are taken from, in flat arrays."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data import soft_labels
from dsbs_jax.data.batching import rationale_draw
from dsbs_jax.data.prepared import ragged, tokens


@dataclasses.dataclass(frozen=True)
class TokenTable:
  """The tokens of one or more tasks' examples, found by position.

  Attributes:
    inputs: encoder ids.
    targets: decoder ids.
    terms: [N] int32, the task id of all target tokens of an example.
    task_ids: the task id of each target token, 0 where it is only read; None
      where `terms` tells.
    input_end: what ends an input, also one that is cut.
    soft: soft targets of the examples' tokens, if there are any.
  """

  inputs: ragged.Ragged | ragged.Repeated
  targets: ragged.Ragged
  terms: np.ndarray
  task_ids: ragged.Ragged | None = None
  input_end: tuple[int, ...] = (contract.EOS_ID,)
  soft: soft_labels.SoftTargets | None = None

  def __len__(self) -> int:
    return len(self.inputs)

  def lengths(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Input and target lengths of some examples, each [n] int64."""
    return self.inputs.lengths_at(positions), self.targets.lengths_at(positions)

  def longest(self) -> tuple[int, int]:
    """Greatest input and target length."""
    return int(self.inputs.lengths.max()), int(self.targets.lengths.max())


def from_tasks(
  parts: Sequence[tokens.Tokens], *, soft: soft_labels.SoftTargets | None = None
) -> TokenTable:
  """All targets of one or more tasks, one task after another.

  An example has one, or as many as its visits choose from. One task stays
  memory-mapped; several are copied into memory.

  Args:
    parts: the tasks.
    soft: soft targets of their tokens, if there are any.
  """
  counts = [_counts(part) for part in parts]
  terms = [
    np.full(count.sum(), p.term or contract.LABEL_ID, np.int32)
    for p, count in zip(parts, counts, strict=True)
  ]
  task_ids = None
  if any(part.task_ids is not None for part in parts):
    task_ids = ragged.join([_task_ids(part) for part in parts])
  # seqio's vocabularies say nothing of it.
  end = getattr(parts[0].vocabulary, 'input_end', (contract.EOS_ID,))
  inputs = _joined([part.inputs for part in parts])
  if any(part.choices is not None for part in parts):
    repeats = np.concatenate(counts)
    inputs = ragged.Repeated(
      inputs, np.repeat(np.arange(len(repeats)), repeats)
    )
  return TokenTable(
    inputs,
    _joined(
      [p.targets if p.choices is None else p.choices.targets for p in parts]
    ),
    np.concatenate(terms),
    task_ids,
    end,
    soft,
  )


def draw_of(
  parts: Sequence[tokens.Tokens], seed: int
) -> rationale_draw.RationaleDraw | None:
  """What visits take of a table of these tasks; None: each row has one target.

  Args:
    parts: the tasks, as in `from_tasks`.
    seed: of the run's order.
  """
  if all(part.choices is None for part in parts):
    return None
  return rationale_draw.seeded([_counts(part) for part in parts], seed=seed)


def _counts(part: tokens.Tokens) -> np.ndarray:
  """[N] int64, targets of each example."""
  if part.choices is None:
    return np.ones(len(part), np.int64)
  return part.choices.counts


def _joined(pieces: Sequence[ragged.Ragged]) -> ragged.Ragged:
  return pieces[0] if len(pieces) == 1 else ragged.join(pieces)


def _task_ids(part: tokens.Tokens) -> ragged.Ragged:
  if part.task_ids is not None:
    return part.task_ids
  term = part.term or contract.LABEL_ID
  return ragged.Ragged(
    np.full_like(part.targets.flat, term), part.targets.offsets
  )
