# SPDX-License-Identifier: Apache-2.0
"""Choosing the shapes of batches: padded, bucketed or packed.

A layout is configuration. `layout.plan(pool, samples, ...)` looks at real
batches and returns a `Plan`: the few shapes that batches will have, in order
of preference. The last shape takes any batch, so nothing is ever dropped,
and nothing is cut unless `truncate` says so. Row counts are multiples of
`multiple`, so that rows divide over devices and microbatches.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data.batching import (
  batch_grid,
  packed_shapes,
  packing_summary,
  placement,
  pools,
)
from dsbs_jax.data.batching.placement import Shape

_MULTIPLE = packed_shapes.MULTIPLE


@dataclasses.dataclass(frozen=True)
class Plan:
  """The shapes of one view's row groups, and how to fill them.

  Attributes:
    examples: what batches are taken from.
    shapes: shapes in order of preference, the last takes any batch.
    packed: whether rows hold several examples.
    summary: one line for people: the choice and what it wastes.
    pair_ids: whether rows tell which example of the batch a target is of.
    grid: how batches are cut, where tokens are computed without padding.
  """

  examples: pools.Pool
  shapes: tuple[Shape, ...]
  packed: bool
  summary: str = ''
  pair_ids: bool = False
  grid: batch_grid.BatchGrid | None = None

  def rows(self, positions: np.ndarray) -> dict[str, np.ndarray]:
    """The row group of these examples, in the first shape that takes them."""
    return self._fill(positions, *self.place(positions))

  def place(self, positions: np.ndarray) -> tuple[placement.Placement, Shape]:
    """Where these examples go, and the first shape that takes them."""
    inputs, targets = self.examples.lengths(positions)
    placed = None
    for shape in self.shapes:
      if self.packed:
        inputs = np.minimum(inputs, shape.inputs)
        targets = np.minimum(targets, shape.targets)
        if placed is None:  # packed shapes differ in their rows and slots only
          placed = placement.first_fit(
            inputs, targets, inputs=shape.inputs, targets=shape.targets
          )
        fits = placed.num_rows <= shape.rows and self._have_slots(
          placed, shape, inputs, targets
        )
      else:
        placed = placement.one_per_row(len(positions))
        fits = inputs.max() <= shape.inputs and targets.max() <= shape.targets
      if fits:
        break
    return placed, shape

  def _have_slots(self, placed, shape, inputs, targets) -> bool:
    """Whether the shape has slots for all tokens of each cell."""
    if not shape.input_slots:
      return True
    return all(
      self.grid.num_cells
      * self.grid.max_tokens(placed.row, lengths, num_rows=shape.rows)
      <= slots
      for lengths, slots in (
        (inputs, shape.input_slots),
        (targets, shape.target_slots),
      )
    )

  def no_rows(self, shape: Shape) -> dict[str, np.ndarray]:
    """A row group of this shape that holds no example."""
    none = np.zeros(0, np.int64)
    return self._fill(none, placement.one_per_row(0), shape)

  def _fill(self, positions, placed, shape) -> dict[str, np.ndarray]:
    return placement.fill(
      self.examples,
      positions,
      placed,
      shape=shape,
      packed=self.packed,
      pair_ids=self.pair_ids,
      grid=self.grid,
    )


@dataclasses.dataclass(frozen=True)
class Padded:
  """One example per row, all rows of one length.

  Attributes:
    lengths: {'inputs': S, 'targets': T}; None takes the longest example's,
      rounded up to a multiple of 8.
    truncate: whether longer examples are cut rather than refused.
  """

  lengths: Mapping[str, int] | None = None
  truncate: bool = False

  def plan(
    self,
    examples: pools.Pool,
    samples: Sequence[np.ndarray],
    *,
    batch_size: int,
    multiple: int = 1,
    grid: batch_grid.BatchGrid | None = None,
  ) -> Plan:
    """Plans for batches of up to `batch_size` examples; `grid` plays no part."""
    width = _widths(examples, self.lengths, truncate=self.truncate)
    shape = Shape(packed_shapes.round_up(batch_size, multiple), *width)
    return _measured(Plan(examples, (shape,), packed=False), samples)


@dataclasses.dataclass(frozen=True)
class Bucketed:
  """One example per row; each batch takes the smallest of a few lengths.

  Attributes:
    num_shapes: how many shapes there are at most.
    lengths: the greatest lengths, as in `Padded`.
    truncate: as in `Padded`.
  """

  num_shapes: int = 4
  lengths: Mapping[str, int] | None = None
  truncate: bool = False

  def __post_init__(self):
    if self.num_shapes < 1:
      raise contract.UserError(
        f'Bucketed.num_shapes is {self.num_shapes}, expected 1 or more.'
      )

  def plan(
    self,
    examples: pools.Pool,
    samples: Sequence[np.ndarray],
    *,
    batch_size: int,
    multiple: int = 1,
    grid: batch_grid.BatchGrid | None = None,
  ) -> Plan:
    """Plans for batches of up to `batch_size` examples; `grid` plays no part."""
    widest = _widths(examples, self.lengths, truncate=self.truncate)
    rows = packed_shapes.round_up(batch_size, multiple)
    longest = np.array(
      [[side.max() for side in examples.lengths(s)] for s in samples]
    )
    shapes = []
    for quantile in np.linspace(0, 1, self.num_shapes, endpoint=False)[1:]:
      width = np.quantile(longest, quantile, axis=0)
      width = np.minimum(
        packed_shapes.round_up(np.ceil(width).astype(int), _MULTIPLE), widest
      )
      shapes.append(Shape(rows, *width.tolist()))
    shapes = tuple(dict.fromkeys([*shapes, Shape(rows, *widest)]))
    return _measured(Plan(examples, shapes, packed=False), samples)


@dataclasses.dataclass(frozen=True)
class Packed:
  """Whole batches packed into a fixed number of rows of fixed lengths.

  Attributes:
    lengths: {'inputs': S, 'targets': T} of a row; None chooses the lengths
      and the number of rows that cost least on the data.
    truncate: as in `Padded`.
  """

  lengths: Mapping[str, int] | None = None
  truncate: bool = False

  def plan(
    self,
    examples: pools.Pool,
    samples: Sequence[np.ndarray],
    *,
    batch_size: int,
    multiple: int = 1,
    grid: batch_grid.BatchGrid | None = None,
  ) -> Plan:
    """Plans for batches of up to `batch_size` examples.

    With a `grid` the shapes have slots, so that padding need not be computed.
    """
    widths = None
    if self.lengths is not None:
      widths = _widths(examples, self.lengths, truncate=self.truncate)
    shapes = packed_shapes.choose(
      examples,
      samples,
      batch_size=batch_size,
      multiple=multiple,
      widths=widths,
      grid=grid,
    )
    plan = Plan(examples, shapes, packed=True, grid=grid)
    return _measured(plan, samples)


Layout = Padded | Bucketed | Packed


def for_view(layout: Layout, view: str) -> Layout:
  """The layout with the lengths of one view.

  Args:
    layout: its lengths may be given per view, {'label': {'inputs': ...}, ...}.
    view: the view's name.

  Returns:
    A layout whose lengths are None or {'inputs': S, 'targets': T}.
  """
  lengths = layout.lengths
  if lengths is not None and not isinstance(lengths, Mapping):
    raise contract.UserError(
      f"lengths is {lengths!r}, expected None or {{'inputs': S, 'targets': T}}."
      ' Correct TASK_FEATURE_LENGTHS.'
    )
  if lengths is None or 'inputs' in lengths:
    return layout
  if view not in layout.lengths:
    raise contract.UserError(
      f'lengths has the keys {sorted(layout.lengths)}, expected inputs and'
      f' targets, or one entry per view with {view!r} among them.'
    )
  return dataclasses.replace(layout, lengths=layout.lengths[view])


def _widths(
  examples: pools.Pool,
  lengths: Mapping[str, int] | None,
  *,
  truncate: bool,
) -> tuple[int, int]:
  """Checked row lengths; from the longest example where none are given."""
  longest = examples.longest()
  if lengths is None:
    return packed_shapes.round_up(
      longest[0], _MULTIPLE
    ), packed_shapes.round_up(longest[1], _MULTIPLE)
  if not {'inputs', 'targets'} <= set(lengths):
    raise contract.UserError(
      f"lengths is {dict(lengths)}, expected the keys 'inputs' and 'targets'."
    )
  for side, found in (
    ('inputs', examples.inputs.lengths),
    ('targets', examples.targets.lengths),
  ):
    allowed = lengths[side]
    if not isinstance(allowed, int) or allowed < 1:
      raise contract.UserError(
        f'{side} length is {allowed!r}, expected a whole number of tokens, 1'
        ' or more. Correct TASK_FEATURE_LENGTHS.'
      )
    cut = found > allowed
    if cut.any() and not truncate:
      raise contract.UserError(
        f'{side} length is {allowed}, but {cut.sum():,} of {len(found):,}'
        ' examples are longer and would be cut, by'
        f' {(found[cut] - allowed).mean():.1f} tokens on average; the longest'
        f' has {found.max()}. Raise the length, leave it out to have it chosen,'
        ' or allow cutting with truncate=True.'
      )
  return int(lengths['inputs']), int(lengths['targets'])


def _measured(plan: Plan, samples: Sequence[np.ndarray]) -> Plan:
  """The plan with its summary, measured on some batches."""
  return dataclasses.replace(
    plan, summary=packing_summary.describe(plan, samples)
  )
