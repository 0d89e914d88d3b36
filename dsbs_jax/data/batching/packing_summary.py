# SPDX-License-Identifier: Apache-2.0
"""A packing plan in words: what was chosen, and what it wastes."""

from collections.abc import Sequence

import numpy as np

from dsbs_jax.data.batching import placement


def describe(plan, samples: Sequence[np.ndarray]) -> str:
  """A `packing.Plan`'s choice in words, measured on some batches.

  Args:
    plan: the plan.
    samples: positions of the examples of each batch.

  Returns:
    Shapes, how full they are, work against the ideal (every example alone in
    a row of its own length) and the number of examples that are cut.
  """
  real = np.zeros(2)
  room = np.zeros(2)
  ideal = work = 0.0
  usual = 0
  for positions in samples:
    inputs, targets = plan.examples.lengths(positions)
    _, shape = plan.place(positions)
    usual += shape == plan.shapes[0]
    real += inputs.sum(), targets.sum()
    room += shape.tokens
    ideal += placement.example_work(inputs, targets).sum()
    work += shape.work()
  shapes = ', '.join(map(str, plan.shapes))
  cut = _number_cut(plan)
  return (
    f'{"packed" if plan.packed else "padded"} rows x inputs/targets: {shapes};'
    f' first shape in {100 * usual / len(samples):.0f} % of'
    f' {len(samples)} batches, encoder {100 * real[0] / room[0]:.0f} % and'
    f' decoder {100 * real[1] / room[1]:.0f} % full, {work / ideal:.2f}x the'
    f' ideal work, {cut:,} of {len(plan.examples):,} examples cut'
  )


def _number_cut(plan) -> int:
  widest = plan.shapes[-1]
  long = plan.examples.inputs.lengths > widest.inputs
  return int((long | (plan.examples.targets.lengths > widest.targets)).sum())
