# SPDX-License-Identifier: Apache-2.0
"""Splits and subsamples are those of the original code."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from dsbs_jax.data.source import splits

FRACTIONS = (0.001, 0.01, 0.1, 0.125, 0.25, 0.5, 0.75, 0.8)
SIZES = {
  (549_367, False): (549, 5493, 54936, 68670, 137341, 274683, 412025, 439493),
  (16_946, False): (16, 169, 1694, 2118, 4236, 8473, 12709, 13556),
  (9_741, True): (8, 87, 876, 1095, 2191, 4383, 6574, 7012),
  (800, True): (None, 7, 72, 90, 180, 360, 540, 576),
}


@pytest.mark.parametrize('num_rows, derive', SIZES)
def test_sizes_of_subsamples_are_the_originals(num_rows, derive):
  for fraction, size in zip(FRACTIONS, SIZES[num_rows, derive], strict=True):
    if size is None:
      with pytest.raises(ValueError, match='expected at least one'):
        splits.select(
          'train', num_rows, derive_validation=derive, fraction=fraction
        )
      continue
    chosen = splits.select(
      'train', num_rows, derive_validation=derive, fraction=fraction
    )
    assert len(chosen) == len(np.unique(chosen)) == size


@pytest.mark.parametrize(
  'num_rows, sizes, first',
  [
    (9_741, (8_766, 975), [4032, 2432, 4722, 1506, 47]),
    (800, (720, 80), [759, 697, 2, 105, 672]),
    (3_105, (2_794, 311), None),
  ],
)
def test_derived_validation_is_the_originals(num_rows, sizes, first):
  train, held = (
    splits.select(split, num_rows, derive_validation=True)
    for split in ('train', 'validation')
  )
  assert (len(train), len(held)) == sizes
  assert first is None or held[:5].tolist() == first
  together = np.concatenate([held, train])
  order = np.random.default_rng(0).permutation(num_rows)
  np.testing.assert_array_equal(together, order)


def test_rounding_up_in_floats_takes_a_row_at_seven_tenths():
  assert len(splits.subsample(800, fraction=0.7, subset_seed=0)) == 559


def test_the_whole_keeps_file_order():
  for split in ('train', 'validation', 'test'):
    chosen = splits.select(split, 9, derive_validation=False)
    assert chosen.tolist() == list(range(9))


def test_runs_draw_different_rows_and_repeat_their_own():
  draws = [
    splits.subsample(1000, fraction=0.5, subset_seed=run).tolist()
    for run in (0, 1, 2, 0)
  ]
  assert draws[0] == draws[3]
  assert len({tuple(draw) for draw in draws}) == 3


@hypothesis.given(
  st.integers(20, 500), st.floats(0.2, 1.0), st.integers(0, 3), st.booleans()
)
@hypothesis.settings(max_examples=60)
def test_train_and_validation_never_share_a_row(
  num_rows, fraction, run, derive
):
  chosen = {
    split: set(
      splits.select(
        split,
        num_rows,
        derive_validation=derive,
        fraction=fraction,
        subset_seed=run,
      ).tolist()
    )
    for split in ('train', 'validation')
  }
  kept = set(
    splits.subsample(num_rows, fraction=fraction, subset_seed=run).tolist()
  )
  if derive:
    assert chosen['train'] | chosen['validation'] == kept
    assert not chosen['train'] & chosen['validation']
  else:
    assert chosen['train'] == kept
    assert chosen['validation'] == set(range(num_rows))


@pytest.mark.parametrize('fraction', [0.0, -0.1, 1.1, float('nan')])
def test_a_fraction_out_of_range_is_refused(fraction):
  with pytest.raises(ValueError, match=r'expected a number in \(0, 1\]'):
    splits.subsample(10, fraction=fraction, subset_seed=0)


@pytest.mark.parametrize('validation', [False, True])
def test_a_derived_test_split_is_the_same_for_every_subset(validation):
  def select(split, **options):
    chosen = splits.select(
      split, 100, derive_validation=validation, derive_test=True, **options
    )
    return chosen.tolist()

  held, train = select('test'), select('train')
  others = select('validation') if validation else []
  assert len(held) == 10 and len(others) == (9 if validation else 0)
  assert sorted(held + train + others) == list(range(100))
  if not validation:
    assert train == sorted(train)  # file order, as without a test split
  for fraction, seed in ((0.5, 0), (0.5, 1), (0.25, 2)):
    options = {'fraction': fraction, 'subset_seed': seed}
    assert select('test', **options) == held
    part = select('train', **options)
    assert not set(part) & set(held) and len(part) < len(train)
