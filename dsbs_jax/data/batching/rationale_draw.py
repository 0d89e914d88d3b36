# SPDX-License-Identifier: Apache-2.0
"""Which rationale a visit to a row trains on: a function of seed and visit.

Visit v of row n, which is epoch v of its task, takes rationale

  (floor(u[n] * k[n]) + v) mod k[n]

of the k[n] that it has to choose from, where u[n] in [0, 1) is drawn from the
seed once. So k visits see k rationales, each row is visited once per epoch
however many it has, and a run that resumes, or is spread over processes,
draws the same.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class RationaleDraw:
  """Draws for the rows of one or more tasks.

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
    seed: of the run's order.
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
