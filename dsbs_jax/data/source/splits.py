# SPDX-License-Identifier: Apache-2.0
"""Which rows are in which split, as the original code draws them.

The original cuts with `train_test_split` of Hugging Face datasets 2.6.1: a
permutation by NumPy's default generator, its first ceil(size * n) indices to
the one side and the rest, in permuted order, to the other.
"""

import math

import numpy as np

from dsbs_jax import contract

VALIDATION_FRACTION = TEST_FRACTION = 0.1
VALIDATION_SEED = 0
# Another permutation than validation's, and not the paper's: its benchmarks
# have test files.
TEST_SEED = 1


def cut(
  num_rows: int, *, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts the indices 0..num_rows-1 in two.

  Args:
    fraction: share of the second side, in (0, 1); its size is rounded up.

  Returns:
    (rest, share): int64 indices, both in permuted order.

  Raises:
    UserError: one of the two sides would be empty.
  """
  size = math.ceil(fraction * num_rows)
  if not 0 < size < num_rows:
    raise contract.UserError(
      f'{num_rows:,} rows cut at {fraction:g} leave {num_rows - size:,} and'
      f' {size:,}, expected at least one on each side. Take a larger'
      ' fraction, or more rows.'
    )
  order = np.random.default_rng(seed).permutation(num_rows)
  return order[size:], order[:size]


def subsample(
  num_rows: int, *, fraction: float, subset_seed: int
) -> np.ndarray:
  """The rows of one subset of the training file.

  Args:
    fraction: share to keep, in (0, 1]; 1 keeps file order.
    subset_seed: which subset of that size; each seed draws another.

  Returns:
    int64 indices. Their number is `num_rows - ceil((1 - fraction) * num_rows)`
    in float arithmetic, so 0.7 of 800 rows are 559.
  """
  if not 0.0 < fraction <= 1.0:
    raise ValueError(f'fraction is {fraction}, expected a number in (0, 1].')
  if fraction == 1.0:
    return np.arange(num_rows)
  return cut(num_rows, fraction=1.0 - fraction, seed=subset_seed)[0]


def select(
  split: str,
  num_rows: int,
  *,
  derive_validation: bool,
  derive_test: bool = False,
  fraction: float = 1.0,
  subset_seed: int = 0,
) -> np.ndarray:
  """Indices into a split's rows file, in the original's order.

  Train is subsampled first; validation is then cut from what is left where
  the benchmark has no file for it. Files of validation and test stay whole. A
  derived test split is cut before, so that every subset has the same one.

  Args:
    num_rows: rows of the split's file (train's for a derived validation).
    fraction: share of train to keep, as in `subsample`.
  """
  derived = {'validation': derive_validation, 'test': derive_test}
  if split != 'train' and not derived[split]:
    return np.arange(num_rows)
  pool = np.arange(num_rows)
  if derive_test:
    pool, share = cut(num_rows, fraction=TEST_FRACTION, seed=TEST_SEED)
    if split == 'test':
      return share
    pool.sort()  # file order, as without a derived test split
  kept = subsample(len(pool), fraction=fraction, subset_seed=subset_seed)
  if derive_validation:
    rest, share = cut(
      len(kept), fraction=VALIDATION_FRACTION, seed=VALIDATION_SEED
    )
    kept = kept[share if split == 'validation' else rest]
  return pool[kept]
