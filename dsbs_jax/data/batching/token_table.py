# SPDX-License-Identifier: Apache-2.0
"""The tokens of all examples that batches are taken from, in flat arrays."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data.prepared import ragged, tokens


@dataclasses.dataclass(frozen=True)
class TokenTable:
  """The tokens of one or more tasks' examples, found by position.

  Attributes:
    inputs: encoder ids.
    targets: decoder ids.
    terms: [N] int32, the task id of all target tokens of an example.
    task_ids: the task id of each target token; None where `terms` tells.
    input_end: what ends an input, also one that is cut.
  """

  inputs: ragged.Ragged
  targets: ragged.Ragged
  terms: np.ndarray
  task_ids: ragged.Ragged | None = None
  input_end: tuple[int, ...] = (contract.EOS_ID,)

  def __len__(self) -> int:
    return len(self.inputs)

  def lengths(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Input and target lengths of some examples, each [n] int64."""
    return self.inputs.lengths_at(positions), self.targets.lengths_at(positions)

  def longest(self) -> tuple[int, int]:
    """Greatest input and target length."""
    return int(self.inputs.lengths.max()), int(self.targets.lengths.max())


def from_tasks(parts: Sequence[tokens.Tokens]) -> TokenTable:
  """All examples of one or more tasks, one task after another.

  One task stays memory-mapped; several are copied into memory.
  """
  terms = [
    np.full(len(p), p.term or contract.LABEL_ID, np.int32) for p in parts
  ]
  task_ids = None
  if any(part.task_ids is not None for part in parts):
    task_ids = ragged.join([_task_ids(part) for part in parts])
  # seqio's vocabularies say nothing of it.
  end = getattr(parts[0].vocabulary, 'input_end', (contract.EOS_ID,))
  if len(parts) == 1:
    own = parts[0]
    return TokenTable(own.inputs, own.targets, terms[0], task_ids, end)
  return TokenTable(
    ragged.join([part.inputs for part in parts]),
    ragged.join([part.targets for part in parts]),
    np.concatenate(terms),
    task_ids,
    end,
  )


def _task_ids(part: tokens.Tokens) -> ragged.Ragged:
  if part.task_ids is not None:
    return part.task_ids
  term = part.term or contract.LABEL_ID
  return ragged.Ragged(
    np.full_like(part.targets.flat, term), part.targets.offsets
  )
