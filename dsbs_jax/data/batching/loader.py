# SPDX-License-Identifier: Apache-2.0
"""Tokens -> batches, in an order that can be repeated and resumed.

The batch of a step is a pure function of the step: Grain gives its examples
(a new permutation every epoch, batches formed within the epoch, the last one
possibly smaller), a `packing.Plan` puts them into rows. So a run resumes
from a step number, every process computes the same global batch and takes
its own rows, and another layout changes no batch's composition.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from dsbs_jax import contract
from dsbs_jax.data.batching import batch_grid, ordering, packing, pools
from dsbs_jax.data.prepared import tokens, views

Reading = ordering.Reading
Batch = dict[str, dict[str, np.ndarray]]

_READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


@dataclasses.dataclass(frozen=True)
class Place:
  """Which rows of each batch this process gets.

  Attributes:
    process_index: number of this process.
    process_count: number of processes; each gets equally many rows.
    row_multiple: what the number of global rows must divide by: data-parallel
      devices times microbatches.
    microbatches: into which the train step cuts each batch.
  """

  process_index: int = 0
  process_count: int = 1
  row_multiple: int = 1
  microbatches: int = 1

  def __post_init__(self):
    if not 0 <= self.process_index < self.process_count:
      raise contract.UserError(
        f'process_index is {self.process_index}, expected one of the'
        f' {self.process_count} processes, counted from 0.'
      )
    if self.row_multiple < 1:
      raise contract.UserError(
        f'row_multiple is {self.row_multiple}, expected 1 or more.'
      )
    if self.microbatches < 1 or self.row_multiple % self.microbatches:
      raise contract.UserError(
        f'microbatches is {self.microbatches}, expected a divisor of'
        f' row_multiple {self.row_multiple}.'
      )

  @property
  def multiple(self) -> int:
    """What the number of global rows is a multiple of."""
    return math.lcm(self.row_multiple, self.process_count)

  @property
  def grid(self) -> batch_grid.BatchGrid | None:
    """How the train step cuts a batch; None if that splits a process's rows."""
    if self.row_multiple % self.process_count:
      return None
    shards = self.row_multiple // self.microbatches
    return batch_grid.BatchGrid(shards, self.microbatches)

  def own(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The part of global rows, and of cells, that belongs to this process."""
    own = {}
    for key, value in rows.items():
      each = len(value) // self.process_count
      own[key] = value[self.process_index * each :][:each]
    return own


class Loader:
  """Batches of one task or mixture; make it with `open`."""

  def __init__(
    self,
    name: str,
    views: Mapping[str, Sequence[tokens.Tokens]],
    order: ordering.Order,
    *,
    layout: packing.Layout,
    place: Place,
    pair_ids: bool = False,
    unpadded: bool = False,
  ):
    """See `open`; `views` are the tasks behind each row group."""
    self.name = name
    self._order = order
    self._place = place
    self._parts = next(iter(views.values()))
    samples = [order.positions(i) for i in range(order.num_sampled)]
    self._plans = {
      view: dataclasses.replace(
        packing.for_view(layout, view).plan(
          pools.pool(parts),
          samples,
          batch_size=order.reading.batch_size,
          multiple=place.multiple,
          grid=place.grid if unpadded else None,
        ),
        pair_ids=pair_ids,
      )
      for view, parts in views.items()
    }

  @property
  def num_examples(self) -> int:
    """Number of examples, or of pairs."""
    return sum(self._order.sizes)

  @property
  def steps_per_epoch(self) -> int:
    """Batches until every example was seen once (for mixtures, on average)."""
    return math.ceil(self.num_examples / self._order.reading.batch_size)

  @property
  def plans(self) -> Mapping[str, packing.Plan]:
    """How each view's rows are laid out."""
    return self._plans

  @property
  def shapes(self) -> dict[str, list[dict[str, tuple[int, ...]]]]:
    """All array shapes of this process by view, the usual ones first."""
    return {
      view: [self._local_shapes(plan, shape) for shape in plan.shapes]
      for view, plan in self._plans.items()
    }

  def _local_shapes(self, plan, shape) -> dict[str, tuple[int, ...]]:
    rows = self._place.own(plan.no_rows(shape))
    return {key: value.shape for key, value in rows.items()}

  def describe(self) -> str:
    """The choice of shapes in words, one line per view."""
    head = (
      f'{self.name}: {self.num_examples:,} examples,'
      f' {self.steps_per_epoch:,} steps per epoch'
    )
    lines = [f'  {v}: {plan.summary}' for v, plan in self._plans.items()]
    return '\n'.join([head, *lines])

  def positions(self, step: int) -> np.ndarray:
    """Which examples the batch of a step holds, as positions in its pool."""
    return self._order.positions(step)

  def example_ids(self, step: int) -> list[str]:
    """Which examples the whole batch of a step holds, by their rows' ids."""
    firsts = np.cumsum([0, *(len(part) for part in self._parts)])
    positions = self.positions(step)
    parts = np.searchsorted(firsts, positions, side='right') - 1
    return [
      self._parts[part].example_id(int(position - firsts[part]))
      for part, position in zip(parts, positions, strict=True)
    ]

  def batch(self, step: int) -> Batch:
    """This process's rows of a step's batch."""
    return self._assemble(self._order.positions(step))

  def _assemble(self, positions: np.ndarray) -> Batch:
    return {
      view: self._place.own(plan.rows(positions))
      for view, plan in self._plans.items()
    }

  def iterate(self, step: int = 0) -> 'Batches':
    """Batches from a step on, read ahead by a thread."""
    return Batches(self._order, self._assemble, step)

  def __iter__(self) -> 'Batches':
    return self.iterate()


class Batches:
  """An iterator over batches whose state is the number of the next step."""

  def __init__(self, order: ordering.Order, assemble, step: int):
    self._order = order
    self._dataset = order.dataset.map(assemble)
    self._start(step)

  def _start(self, step: int) -> None:
    self._step = step
    rest = self._dataset[step:]
    self._iterator = iter(rest.to_iter_dataset(_READ_AHEAD))

  def __iter__(self) -> 'Batches':
    return self

  def __next__(self) -> Batch:
    batch = next(self._iterator)
    self._step += 1
    return batch

  def get_state(self) -> dict[str, Any]:
    """All that `set_state` needs; JSON values."""
    return {'next_step': self._step, 'order': self._order.fingerprint}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes to where `get_state` was called.

    Args:
      state: what `get_state` returned, also in another process or with
        another layout.

    Raises:
      UserError: the state belongs to another order of examples.
    """
    if state['order'] != self._order.fingerprint:
      raise contract.UserError(
        f'the loader state was saved with order {state["order"]!r}, expected'
        f' {self._order.fingerprint!r}: the data, the batch size, the seed or'
        ' the way of mixing has changed. Restore those, or start a new run.'
      )
    self._iterator.close()
    self._start(int(state['next_step']))


def open(
  name: str,
  source: tokens.Source,
  reading: Reading,
  *,
  layout: packing.Layout | None = None,
  place: Place | None = None,
  split: str = 'train',
  pair_ids: bool = False,
  unpadded: bool = False,
) -> Loader:
  """Opens the batches that a task or mixture trains on.

  Args:
    name: a task or mixture of this project, decided by the name alone, or any
      other that is registered with seqio.
    source: which examples, as which ids.
    reading: which of them each step sees.
    layout: how they lie in rows; None is `Packed()`.
    place: this process among all; None is the only one.
    split: the split.
    pair_ids: whether rows tell which example of the batch a target is of.
    unpadded: whether packed rows tell where their tokens are, so that the
      network need not compute padding.

  Returns:
    The loader. Its batches hold 'label' and 'rationale' for a paired `_dsbs`,
    one of the two for another task of this project, else 'mixture'.

  Raises:
    UserError: the name or split is unknown, or an explicit length is short.
  """
  found, rates = views.load(name, split, source, reading=reading)
  parts = next(iter(found.values()))
  order = ordering.Order(
    [len(part) for part in parts],
    reading,
    rates=rates,
    contents=[hashlib.sha256(p.index.tobytes()).hexdigest() for p in parts],
  )
  return Loader(
    name,
    found,
    order,
    layout=layout or packing.Packed(),
    place=place or Place(),
    pair_ids=pair_ids,
    unpadded=unpadded,
  )


def eval_batches(
  examples: tokens.Tokens,
  batch_size: int,
  *,
  place: Place | None = None,
  sort: bool = True,
  num_shapes: int = 4,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
  """All examples of a split once, in rows of few static shapes.

  Args:
    examples: the split.
    batch_size: examples per batch of all processes; rounded up to what
      `place` asks for.
    place: this process among all; None is the only one.
    sort: longest inputs first, so that batches are even and memory is known
      at the first; False keeps the split's order.
    num_shapes: how many shapes there are at most.

  Yields:
    positions [rows] int32 in the split of all rows of the batch, -1 where a
    row is padding, and this process's rows. The last batch has as many rows.
  """
  place = place or Place()
  lengths = examples.inputs.lengths
  order = (
    np.argsort(-lengths, kind='stable') if sort else np.arange(len(lengths))
  )
  parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
  layout = packing.Bucketed(num_shapes=num_shapes)
  plan = layout.plan(
    pools.pool([examples]),
    parts,
    batch_size=batch_size,
    multiple=place.multiple,
  )
  # Inputs alone decide: nothing is computed of targets, and one long target
  # would have its whole batch computed in the widest rows.
  widest = plan.shapes[-1].targets
  shapes = dict.fromkeys(s._replace(targets=widest) for s in plan.shapes)
  plan = dataclasses.replace(plan, shapes=tuple(shapes))
  for part in parts:
    positions = np.full(plan.shapes[0].rows, -1, np.int32)
    positions[: len(part)] = part
    yield positions, place.own(plan.rows(part))
