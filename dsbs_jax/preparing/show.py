# SPDX-License-Identifier: Apache-2.0
"""Showing examples as training sees them: text, tokens, trained terms."""

import dataclasses
import os

import numpy as np
import rich.console
import rich.table
import rich.text

from dsbs_jax import contract
from dsbs_jax.data import register
from dsbs_jax.data.batching import batch_order, layouts, loader
from dsbs_jax.data.prepared import own_vocabularies, rationale_rules, views
from dsbs_jax.runtime import terminal_text

_TERMS = {task_id: name for name, task_id in contract.TASK_IDS.items()}


@dataclasses.dataclass(frozen=True)
class ShowConfig:
  """What `python -m dsbs_jax.show` is asked to show; see its flags."""

  task: str
  data_dir: str | None = None
  vocabulary: str | None = None
  prefixes: str | None = None
  split: str = 'train'
  num: int = 3
  module: str | None = None
  rationale_choice: str | None = None

  def __post_init__(self):
    if not self.task:
      raise contract.UserError('--task is missing, such as --task=cqa_gt_dsbs.')
    if self.num < 1:
      raise contract.UserError(f'--num is {self.num}, expected 1 or more.')


def show(config: ShowConfig) -> None:
  """Prints a task's or mixture's first examples; UserError without such."""
  if config.module is not None:
    register.load_module(config.module)
  source = register.source(
    data_dir=config.data_dir,
    vocabulary=config.vocabulary or _trained_vocabulary(config),
    prefixes=config.prefixes,
  )
  rule = config.rationale_choice or rationale_rules.FIRST
  order = batch_order.BatchOrder(batch_size=config.num, shuffle=False)
  found, _ = views.load(
    config.task, config.split, source, rationale_choice=rule
  )
  opened = loader.open(
    config.task,
    source,
    order,
    layout=layouts.Padded(),
    split=config.split,
    rationale_choice=rule,
  )
  console = rich.console.Console(markup=False, emoji=False)
  console.print(f'{config.task}: {opened.num_examples:,} examples')
  batch, positions = opened.batch(0), opened.positions(0)
  for row, position in enumerate(positions):
    for view, rows in batch.items():
      parts, place = found[view], int(position)
      target = int(opened.targets(view, 0)[row])
      # A mixture's pool is one task after another.
      while place >= len(parts[0]):
        place -= len(parts[0])
        target -= parts[0].num_targets
        parts = parts[1:]
      example = {key: value[row] for key, value in rows.items()}
      _show_example(console, parts[0], (place, target), row=example)


def _trained_vocabulary(config: ShowConfig) -> str | None:
  """What `train` takes, too: the vocabulary that lies beside the data."""
  parsed = views.own_name(config.task)
  if parsed is None or os.environ.get('DSBS_VOCABULARY'):
    return None
  data_dir = register.source(data_dir=config.data_dir).data_dir
  return own_vocabularies.only(parsed.benchmark, data_dir)


def _show_example(console, tokens, place: tuple[int, int], *, row) -> None:
  position, target = place
  name = f'{tokens.name} {tokens.split} {int(tokens.index[position])}'
  title = f'{name} ({tokens.example_id(position)})'
  console.rule(rich.text.Text(terminal_text.visible(title)))
  for title, text in (
    ('input', tokens.input_text(position)),
    ('target', tokens.target_text(position, target)),
    ('answer to compare with', tokens.answer(position)),
  ):
    console.print(rich.text.Text(f'{title}:', style='bold'))
    console.print(rich.text.Text(terminal_text.visible(text)))
  source = row['encoder_input_tokens']
  pieces = [_piece(tokens, token) for token in source[: _length(source)]]
  console.print(rich.text.Text(f'{len(pieces)} input tokens:', style='bold'))
  console.print(rich.text.Text(' '.join(pieces)))
  console.print(_target_table(tokens, row))


def _target_table(tokens, row) -> rich.table.Table:
  table = rich.table.Table(
    *('position', 'decoder reads', 'is trained to write', 'id', 'term')
  )
  table.add_column('weight', justify='right')
  for place in range(_length(row['decoder_target_tokens'])):
    target = row['decoder_target_tokens'][place]
    term = int(row['decoder_task_ids'][place])
    table.add_row(
      str(place),
      rich.text.Text(_piece(tokens, row['decoder_input_tokens'][place])),
      rich.text.Text(_piece(tokens, target)),
      str(target),
      _TERMS.get(term, '-'),
      f'{row["decoder_loss_weights"][place]:g}',
    )
  return table


def _length(ids: np.ndarray) -> int:
  return int(np.flatnonzero(ids)[-1]) + 1 if ids.any() else 0


def _piece(tokens, token: int) -> str:
  known = {contract.PAD_ID: '<start>', contract.EOS_ID: '<end>'}
  if token in known:
    return known[token]
  piece = getattr(tokens.vocabulary, 'piece', None)
  if piece is None:  # a seqio vocabulary
    return terminal_text.visible(tokens.vocabulary.decode([int(token)]))
  return terminal_text.visible(piece(token))
