# SPDX-License-Identifier: Apache-2.0
"""python -m bench.suite: everything that docs/performance.md reports, measured.

Without flags it runs on the bundled benchmark. With a prepared benchmark:

  python -m bench.suite --mixture=cqa_gt_dsbs --data_dir=data \\
    --vocabulary=sentencepiece.model

Beside the original code and T5X it needs an interpreter that imports them:
--original_python, --t5x_python (with what --t5x_path adds to PYTHONPATH).
"""

import argparse
import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator

from bench import (
  batches,
  choices,
  devices,
  evaluating,
  step_time,
  surroundings,
  table,
)
from dsbs_jax.preparing import prepare

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SECTIONS = (
  'layouts',
  'shares',
  'choices',
  'options',
  'peers',
  'decoding',
  'loading',
  'first_step',
  'evaluation',
  'devices',
  'data_sizes',
)


def main() -> None:
  """Writes bench.md and bench.json."""
  arguments = parse()
  with tempfile.TemporaryDirectory() as folder:
    if arguments.data_dir is None:
      bundled(arguments, folder)
    rows = list(measure(arguments, pathlib.Path(folder)))
  facts = table.machine() | {
    'mixture': arguments.mixture,
    'vocabulary': pathlib.Path(arguments.vocabulary).name,
    'command': ' '.join(['python -m bench.suite', *sys.argv[1:]]),
  }
  table.write(pathlib.Path(arguments.out), rows, facts)


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--mixture', default='parcels_gt_dsbs')
  parser.add_argument('--data_dir', help='Prepared; default: bundled rows.')
  parser.add_argument('--vocabulary')
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--steps', type=int, default=4, help='Per round.')
  parser.add_argument('--model', default='mini')
  parser.add_argument('--sections', nargs='+', default=SECTIONS)
  parser.add_argument('--original_python')
  parser.add_argument('--original_path', default='')
  parser.add_argument('--t5x_python')
  parser.add_argument('--t5x_path', default='')
  parser.add_argument('--out', default=str(REPOSITORY / 'runs' / 'bench'))
  return parser.parse_args()


def bundled(arguments: argparse.Namespace, folder: str) -> None:
  """Prepares the bundled benchmark and points the arguments at it."""
  arguments.data_dir = f'{folder}/data'
  with contextlib.redirect_stdout(sys.stderr):
    prepare.prepare(
      prepare.PrepareConfig(
        benchmark='parcels',
        source=str(REPOSITORY / 'examples' / 'parcels'),
        data_dir=arguments.data_dir,
        train_vocab=256,
      )
    )
  arguments.vocabulary = f'{folder}/data/vocabularies/parcels.256.model:0'


def measure(
  arguments: argparse.Namespace, folder: pathlib.Path
) -> Iterator[table.Row]:
  """The rows of all sections that were asked for, as they are measured."""
  where = arguments.mixture, arguments.data_dir, arguments.vocabulary
  vocab_size = surroundings.model_vocab_size(*where[1:])
  path = folder / 'workload.npz'
  batches.make(
    name=arguments.mixture,
    data_dir=arguments.data_dir,
    vocabulary=arguments.vocabulary,
    batch_size=arguments.batch_size,
    num_steps=max(8, arguments.steps),
  ).save(path)
  paths = {'original': arguments.original_path, 'T5X': arguments.t5x_path}
  task = step_time.Task(
    path,
    vocab_size,
    rounds=arguments.rounds,
    steps=arguments.steps,
    model=arguments.model,
    peers={
      name: python
      for name, python in (
        ('original', arguments.original_python),
        ('T5X', arguments.t5x_python),
      )
      if python
    },
    peer_paths={
      name: os.pathsep.join(filter(None, [str(REPOSITORY), more]))
      for name, more in paths.items()
    },
  )
  label_task = arguments.mixture.removesuffix('dsbs') + 'label'
  sections = {
    'layouts': lambda: step_time.layouts(task),
    'shares': lambda: step_time.shares(task),
    'choices': choices.choices,
    'options': lambda: step_time.options(task),
    'peers': lambda: step_time.peers(task),
    'decoding': lambda: step_time.decoding(task),
    'loading': lambda: surroundings.loading(*where),
    'first_step': lambda: surroundings.first_step(*where),
    'evaluation': lambda: evaluating.evaluation(
      label_task, *where[1:], vocab_size
    ),
    'devices': lambda: devices.scaling(path, vocab_size),
    'data_sizes': surroundings.data_sizes,
  }
  for name in arguments.sections:
    for row in sections[name]():
      print(
        f'{row.section}: {row.what}: {row.value:.4g} {row.unit}', flush=True
      )
      yield row


if __name__ == '__main__':
  main()
