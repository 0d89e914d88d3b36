# SPDX-License-Identifier: Apache-2.0
"""Batches of a task or mixture, in an order that can be repeated and resumed.

The batch of a step is a pure function of the step: a `BatchSampler` says
which examples it holds (`batch_order`), a `Packer` lays them out in rows
(`packing`). So a run resumes from a step number, every process finds the same
places for all examples and writes its own rows, and another layout changes no
batch's composition.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data import soft_labels
from dsbs_jax.data.batching import (
  batch_grid,
  batch_order,
  layouts,
  packing,
  token_table,
)
from dsbs_jax.data.batching.batch_iterator import Batch, BatchIterator
from dsbs_jax.data.prepared import rationale_rules, tokens, views


@dataclasses.dataclass(frozen=True)
class ShardInfo:
  """Which rows of each batch this process gets.

  Attributes:
    process_count: number of processes; each gets equally many rows.
    row_multiple: the number of global rows is a multiple of it: data-parallel
      devices times microbatches.
    microbatches: into which the train step cuts each batch.
  """

  process_index: int = 0
  process_count: int = 1
  row_multiple: int = 1
  microbatches: int = 1

  def __post_init__(self):
    if not 0 <= self.process_index < self.process_count:
      raise ValueError(
        f'process_index is {self.process_index}, expected one of the'
        f' {self.process_count} processes, counted from 0.'
      )
    least = min(self.row_multiple, self.microbatches)
    if least < 1 or self.row_multiple % self.microbatches:
      raise ValueError(
        f'row_multiple is {self.row_multiple}, expected a multiple of'
        f' {self.microbatches} microbatches, both 1 or more.'
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
    return batch_grid.BatchGrid(
      self.row_multiple // self.microbatches, self.microbatches
    )

  @property
  def process(self) -> dict[str, int]:
    """This process, as `Packer.pack` takes it."""
    return {
      'process_index': self.process_index,
      'process_count': self.process_count,
    }

  def local(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The part of global rows, and of cells, that belongs to this process."""
    found = {}
    for key, value in rows.items():
      each = len(value) // self.process_count
      found[key] = value[self.process_index * each :][:each]
    return found


class Loader:
  """Batches of one task or mixture.

  Attributes:
    packers: view -> how its batches are laid out.
  """

  def __init__(
    self,
    name: str,
    source: tokens.Source,
    order: batch_order.BatchOrder,
    *,
    layout: layouts.Layout | None = None,
    shard_info: ShardInfo | None = None,
    split: str = 'train',
    pair_ids: bool = False,
    skip_padding: bool = False,
    rationale_choice: str = rationale_rules.FIRST,
    further_views: Sequence[str] = (),
    soft: soft_labels.SoftTargets | None = None,
  ):
    """Opens the batches that a task or mixture trains on.

    They hold 'label' and 'rationale' for a paired `_dsbs`, one of them for
    another task of this project, else 'mixture'.

    Args:
      name: a task or mixture of this project, decided by the name alone, or any
        other that is registered with seqio.
      order: which of them each step sees.
      layout: how they lie in rows; None is `Packed()`.
      shard_info: this process among all; None is the only one.
      pair_ids: whether rows tell which example of the batch a target is of.
      skip_padding: whether packed rows tell where their tokens are, so that the
        network need not compute padding.
      rationale_choice: which of a row's several rationales its visits choose
        from, a rule of `rationale_rules`.
      soft: soft targets of the labels' tokens, see `soft_label_rows`.

    Raises:
      UserError: the name or split is unknown, or an explicit length is short.
    """
    found, rates = views.load(
      name,
      split,
      source,
      paired=order.paired,
      rates=order.rates,
      rationale_choice=rationale_choice,
      further_views=further_views,
    )
    self.name = name
    self._parts = next(iter(found.values()))
    self._draws = {
      view: token_table.draw_of(parts, order.seed)
      for view, parts in found.items()
    }
    self._choices = [
      part.choices for parts in found.values() for part in parts if part.choices
    ]
    self._sampler = batch_order.BatchSampler(
      [len(part) for part in self._parts],
      order,
      rates=rates,
      contents=_contents(self._parts, self._choices),
    )
    self._shard_info = shard_info or ShardInfo()
    samples = self._sampler.first_batches()
    self._samples = {
      view: [self._rows(view, visits) for visits in samples] for view in found
    }
    self.packers = {
      view: self._packer(
        view,
        token_table.from_tasks(
          parts, soft=soft if view == contract.LABEL_VIEW else None
        ),
        layout or layouts.Packed(),
        pair_ids=pair_ids,
        skip_padding=skip_padding,
      )
      for view, parts in found.items()
    }

  def _packer(
    self,
    view: str,
    table: token_table.TokenTable,
    layout: layouts.Layout,
    *,
    pair_ids: bool,
    skip_padding: bool,
  ) -> packing.Packer:
    """How the batches of a view are laid out; the options of `__init__`."""
    shard_info = self._shard_info
    packer = layout.for_view(view).packer(
      table,
      self._samples[view],
      batch_size=self._sampler.order.batch_size,
      multiple=shard_info.multiple,
      grid=shard_info.grid if skip_padding else None,
    )
    return dataclasses.replace(packer, pair_ids=pair_ids)

  @property
  def num_examples(self) -> int:
    """Number of examples, or of pairs."""
    return sum(self._sampler.sizes)

  @property
  def steps_per_epoch(self) -> int:
    """Batches until every example was seen once (for mixtures, on average)."""
    return math.ceil(self.num_examples / self._sampler.order.batch_size)

  def describe(self) -> str:
    """The choice of shapes in words, one line per view."""
    head = (
      f'{self.name}: {self.num_examples:,} examples,'
      f' {self.steps_per_epoch:,} steps per epoch'
    )
    lines = [
      f'  {view}: {packer.describe(self._samples[view])}'
      for view, packer in self.packers.items()
    ]
    lines += [f'  rationales: {choices}' for choices in self._choices]
    lines += [
      f'  soft labels: {packer.table.soft.num_examples:,} examples, the others'
      ' have hard labels alone'
      for packer in self.packers.values()
      if packer.table.soft is not None
    ]
    return '\n'.join([head, *lines])

  def positions(self, step: int) -> np.ndarray:
    """[n] int64, which examples the batch of a step holds, all processes'."""
    return self.visits(step).positions

  def visits(self, step: int) -> batch_order.Visits:
    """The same, and how often each of them was read before."""
    return self._sampler.decode(self._sampler.dataset[step])

  def targets(self, view: str, step: int) -> np.ndarray:
    """[n] int64, which target of its table each example of a step trains on."""
    return self._rows(view, self.visits(step))

  def lengths(self, step: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """View -> input and target lengths of a step's examples, each [n] int64."""
    visits = self.visits(step)
    return {
      view: packer.table.lengths(self._rows(view, visits))
      for view, packer in self.packers.items()
    }

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
    return self._assemble(self._sampler.dataset[step])

  def _rows(self, view: str, visits: batch_order.Visits) -> np.ndarray:
    """[n] int64, rows of a view's table, whose targets these visits take."""
    draw = self._draws[view]
    return visits.positions if draw is None else draw.at(*visits)

  def _assemble(self, element: np.ndarray) -> Batch:
    visits = self._sampler.decode(element)
    return {
      view: packer.pack(self._rows(view, visits), **self._shard_info.process)
      for view, packer in self.packers.items()
    }

  def iterate(self, step: int = 0) -> BatchIterator:
    """Batches from a step on, read ahead by a thread."""
    return BatchIterator(self._sampler, self._assemble, step=step)

  def __iter__(self) -> BatchIterator:
    return self.iterate()


open = Loader  # read as `loader.open(...)`


def _contents(
  parts: Sequence[tokens.Tokens], choices: Sequence[rationale_rules.Choices]
) -> list[str]:
  """Fingerprints of what batches are made of, for the sampler's own."""
  digests = [hashlib.sha256(part.index.tobytes()) for part in parts]
  return [digest.hexdigest() for digest in digests] + [
    f'{each.rule} {each.fingerprint}' for each in choices
  ]
