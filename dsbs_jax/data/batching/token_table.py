# SPDX-License-Identifier: Apache-2.0
"""The tokens of all examples that batches are taken from, in flat arrays."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data import soft_labels
from dsbs_jax.data.prepared import ragged, tokens


@dataclasses.dataclass(frozen=True)
class TokenTable:
  """The tokens of one or more tasks' examples, found by position.

  Attributes:
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


@dataclasses.dataclass(frozen=True)
class RationaleDraw:
  """Which rationale a visit to a row trains on, of one or more tasks.

  Visit v of row n, which is epoch v of its task, takes rationale

    (floor(u[n] * k[n]) + v) mod k[n]

  of the k[n] that it has to choose from, where u[n] in [0, 1) is drawn from the
  seed once. So k visits see k rationales, each row is visited once per epoch
  however many it has, and a run that resumes, or is spread over processes,
  draws the same.

  Attributes:
    first: [N] int64, where each row's rationales begin among those of all rows.
    count: [N] int64, how many each row has, 1 or more.
    start: [N] int64, which of them its visit 0 takes.
  """

  first: np.ndarray
  count: np.ndarray
  start: np.ndarray

  def at(self, positions: np.ndarray, visits: np.ndarray) -> np.ndarray:
    """[n] int64, rationales among those of all rows.

    Args:
      positions: [n] int64, the rows.
      visits: [n] int64, how many times each was visited before.
    """
    count = self.count[positions]
    return self.first[positions] + (self.start[positions] + visits) % count


def seeded(counts: Sequence[np.ndarray], *, seed: int) -> RationaleDraw:
  """The draws of a run.

  Args:
    counts: of each task [N] int64, how many rationales its rows have, 1 or
      more; tasks follow one another in the result.
  """
  starts = []
  for stream, count in enumerate(counts):
    # Four numbers, where the shuffle of an epoch has three: no key is shared.
    key = np.random.SeedSequence((seed, stream, 0, 1))
    drawn = np.random.Generator(np.random.Philox(key)).random(len(count))
    starts.append((drawn * count).astype(np.int64))
  every = np.concatenate(counts).astype(np.int64)
  first = np.cumsum(every) - every
  return RationaleDraw(first, every, np.concatenate(starts))


def draw_of(parts: Sequence[tokens.Tokens], seed: int) -> RationaleDraw | None:
  """What visits take of a table of these tasks; None: each row has one target."""
  if all(part.choices is None for part in parts):
    return None
  return seeded([_counts(part) for part in parts], seed=seed)


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
