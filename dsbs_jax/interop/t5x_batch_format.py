# SPDX-License-Identifier: Apache-2.0
"""Our batches (dicts of row groups) as T5X's batches (flat dicts of arrays).

T5X knows one group of rows. A paired batch has two, so the rationale view's
keys carry a prefix: `encoder_input_tokens` is the label view's,
`rationale_encoder_input_tokens` the rationale view's.

T5X also wants one number of rows, BATCH_SIZE, for every array, while B pairs
packed into rows make fewer rows than B, and not as many in both views. They
travel with empty rows behind them; the *width* of one more array without
content, `packed_rows`, tells their number, which must be known when the step
is compiled.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dsbs_jax import contract

_RATIONALE_PREFIX = 'rationale_'
_ROWS = 'packed_rows'
Rows = dict[str, Any]


def flatten(batch: Mapping[str, Rows], *, num_rows: int) -> Rows:
  """Our batch -> T5X's, which has `num_rows` rows of this process.

  Args:
    batch: view -> row group of NumPy arrays, the rows of this process.

  Raises:
    UserError: a view has more rows.
  """
  groups = {}
  for view, rows in batch.items():
    padded = {key: _pad_rows(array, num_rows) for key, array in rows.items()}
    have = len(rows['decoder_target_tokens'])
    if have != num_rows:
      padded[_ROWS] = np.zeros((num_rows, have), np.int8)
    groups[view] = padded
  return join(groups)


def unflatten(batch: Mapping[str, Any], *, num_shards: int) -> dict[str, Rows]:
  """T5X's batch -> our views, without the empty rows.

  Args:
    batch: key -> array over all processes.
    num_shards: parts into which the rows were cut before they travelled.
  """
  return {
    view: _drop_padding_rows(rows, num_shards)
    for view, rows in views(batch).items()
  }


def views(batch: Mapping[str, Any]) -> dict[str, Rows]:
  """Sorts a flat batch's keys by view, arrays as they are."""
  rest, rationale = {}, {}
  for key, array in batch.items():
    group = rationale if key.startswith(_RATIONALE_PREFIX) else rest
    group[key.removeprefix(_RATIONALE_PREFIX)] = array
  if not rationale:
    return {contract.MIXTURE_VIEW: rest}
  return {contract.LABEL_VIEW: rest, contract.RATIONALE_VIEW: rationale}


def join(groups: Mapping[str, Rows]) -> Rows:
  """The inverse of `views`."""
  if len(groups) == 1:
    return next(iter(groups.values()))
  rationale = groups[contract.RATIONALE_VIEW]
  return groups[contract.LABEL_VIEW] | {
    _RATIONALE_PREFIX + key: array for key, array in rationale.items()
  }


def is_packed(batch: Mapping[str, Any]) -> bool:
  """Whether empty rows travel with the batch."""
  return any(key.endswith(_ROWS) for key in batch)


def _pad_rows(array: np.ndarray, num_rows: int) -> np.ndarray:
  if len(array) > num_rows:
    raise contract.UserError(
      f'a batch of {num_rows} examples makes {len(array)} rows, expected at'
      ' most as many as examples. Use longer rows (TASK_FEATURE_LENGTHS), a'
      ' larger BATCH_SIZE or pack = False.'
    )
  empty = np.zeros((num_rows - len(array), *array.shape[1:]), array.dtype)
  return np.concatenate([array, empty])


def _drop_padding_rows(rows: Rows, num_shards: int) -> Rows:
  rows = dict(rows)
  marker = rows.pop(_ROWS, None)
  if marker is None:
    return rows
  kept = marker.shape[1]

  def drop(array):
    cut = array.reshape(num_shards, -1, *array.shape[1:])[:, :kept]
    return cut.reshape(num_shards * kept, *array.shape[1:])

  return {key: drop(array) for key, array in rows.items()}
