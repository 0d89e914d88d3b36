# SPDX-License-Identifier: Apache-2.0
"""Layouts: padded, bucketed or packed rows, as a run's configuration.

`layout.packer(table, samples, ...)` looks at real batches and returns the
`packing.Packer` that lays batches out in a few shapes of rows. The last shape
takes any batch, so nothing is ever dropped, and nothing is cut unless
`truncate` says so. Row counts are multiples of `multiple`, so that rows divide
over devices and microbatches.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data.batching import batch_grid, packing, row_shapes, token_table


@dataclasses.dataclass(frozen=True)
class Layout(abc.ABC):
  """What all layouts share.

  Attributes:
    lengths: {'inputs': S, 'targets': T} of a row, or one such entry per view;
      None takes the longest example's, rounded up to a multiple of 8.
    truncate: whether longer examples are cut rather than refused.
  """

  lengths: Mapping[str, int] | None = None
  truncate: bool = False

  packed: ClassVar[bool] = False

  def __post_init__(self):
    if not isinstance(self.truncate, bool):
      raise contract.UserError(
        f'{type(self).__name__}.truncate is {self.truncate!r}, expected True or'
        ' False.'
      )

  def packer(
    self,
    table: token_table.TokenTable,
    samples: Sequence[np.ndarray],
    *,
    batch_size: int,
    multiple: int = 1,
    grid: batch_grid.BatchGrid | None = None,
  ) -> packing.Packer:
    """Chooses the shapes of batches.

    Args:
      samples: positions of the examples of some batches.
      multiple: row counts are multiples of it.
      grid: how batches are cut; with it, packed rows have slots for tokens
        that are computed without padding. Others ignore it.

    Raises:
      UserError: an explicit length is no length, or shorter than an example.
    """
    grid = grid if self.packed else None
    shapes = self._shapes(
      table, samples, batch_size=batch_size, multiple=multiple, grid=grid
    )
    return packing.Packer(table, shapes, packed=self.packed, grid=grid)

  def for_view(self, view: str) -> Self:
    """The layout with one view's lengths; UserError where it has none."""
    lengths = self.lengths
    if lengths is not None and not isinstance(lengths, Mapping):
      raise contract.UserError(
        f'lengths is {lengths!r}, expected None or'
        " {'inputs': S, 'targets': T}. Correct TASK_FEATURE_LENGTHS."
      )
    if lengths is None or 'inputs' in lengths:
      return self
    if view not in lengths:
      raise contract.UserError(
        f'lengths has the keys {sorted(lengths)}, expected inputs and'
        f' targets, or one entry per view with {view!r} among them. Correct'
        ' TASK_FEATURE_LENGTHS.'
      )
    return dataclasses.replace(self, lengths=lengths[view])

  @abc.abstractmethod
  def _shapes(self, table, samples, *, batch_size, multiple, grid):
    """The `row_shapes.Shape`s in order of preference; see `packer`."""

  def _widths(self, table: token_table.TokenTable) -> tuple[int, int]:
    """Checked row lengths; from the longest example where none are given."""
    if self.lengths is None:
      inputs, targets = table.longest()
      return (
        row_shapes.round_up(inputs, row_shapes.MULTIPLE),
        row_shapes.round_up(targets, row_shapes.MULTIPLE),
      )
    if not {'inputs', 'targets'} <= set(self.lengths):
      raise contract.UserError(
        f"lengths is {dict(self.lengths)}, expected the keys 'inputs' and"
        " 'targets'. Correct TASK_FEATURE_LENGTHS."
      )
    for side in ('inputs', 'targets'):
      self._check_length(side, getattr(table, side).lengths)
    return int(self.lengths['inputs']), int(self.lengths['targets'])

  def _check_length(self, side: str, found: np.ndarray) -> None:
    """Raises where a row length is wrong or would cut examples unasked."""
    allowed = self.lengths[side]
    if not isinstance(allowed, int) or allowed < 1:
      raise contract.UserError(
        f'{side} length is {allowed!r}, expected a whole number of tokens, 1'
        ' or more. Correct TASK_FEATURE_LENGTHS.'
      )
    cut = found > allowed
    if cut.any() and not self.truncate:
      raise contract.UserError(
        f'{side} length is {allowed}, but {cut.sum():,} of {len(found):,}'
        ' examples are longer and would be cut, by'
        f' {(found[cut] - allowed).mean():.1f} tokens on average; the longest'
        f' has {found.max()}. Raise the length, leave it out to have it chosen,'
        ' or allow cutting with'
        f' --gin.layouts.{type(self).__name__}.truncate=True.'
      )


class Padded(Layout):
  """One example per row, all rows of one length."""

  def _shapes(self, table, samples, *, batch_size, multiple, grid):
    rows = row_shapes.round_up(batch_size, multiple)
    return (row_shapes.Shape(rows, *self._widths(table)),)


@dataclasses.dataclass(frozen=True)
class Bucketed(Layout):
  """One example per row; a batch has the smallest of `num_shapes` or fewer."""

  num_shapes: int = 4

  def __post_init__(self):
    super().__post_init__()
    if type(self.num_shapes) is not int or self.num_shapes < 1:
      raise contract.UserError(
        f'Bucketed.num_shapes is {self.num_shapes!r}, expected a whole number,'
        ' 1 or more.'
      )

  def _shapes(self, table, samples, *, batch_size, multiple, grid):
    widest = self._widths(table)
    rows = row_shapes.round_up(batch_size, multiple)
    longest = np.array(
      [[side.max() for side in table.lengths(sample)] for sample in samples]
    )
    shapes = []
    for quantile in np.linspace(0, 1, self.num_shapes, endpoint=False)[1:]:
      width = np.ceil(np.quantile(longest, quantile, axis=0)).astype(int)
      width = row_shapes.round_up(width, row_shapes.MULTIPLE)
      shapes.append(row_shapes.Shape(rows, *np.minimum(width, widest).tolist()))
    return tuple(dict.fromkeys([*shapes, row_shapes.Shape(rows, *widest)]))


class Packed(Layout):
  """Several examples per row: the rows that cost least on the data.

  Where `lengths` is None, both the lengths and the number of rows are chosen.
  """

  packed = True

  def _shapes(self, table, samples, *, batch_size, multiple, grid):
    return row_shapes.choose(
      table,
      samples,
      batch_size=batch_size,
      multiple=multiple,
      widths=None if self.lengths is None else self._widths(table),
      grid=grid,
    )
