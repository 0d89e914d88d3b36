# SPDX-License-Identifier: Apache-2.0
"""python -m bench.suite: everything that docs/performance.md reports, measured.

Without flags it runs on the bundled benchmark. With a prepared benchmark:

  python -m bench.suite --mixture=cqa_gt_dsbs --data_dir=data \\
    --vocabulary=sentencepiece.model

Beside the original code and T5X it needs an interpreter that imports them:
--original_python, --t5x_python (with what --t5x_path adds to PYTHONPATH).
"""

import argparse
import dataclasses
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator

from bench import (
  batches,
  choices,
  step_time,
  surroundings,
  table,
)

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
  """Writes bench.md and bench.json."""
  arguments = parse()
  with tempfile.TemporaryDirectory() as folder:
    if arguments.data_dir is None:
      arguments.data_dir = f'{folder}/data'
      source = surroundings.BUNDLED
      arguments.vocabulary = surroundings.prepare(source, arguments.data_dir)
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
  parser.add_argument('--sections', nargs='+', help='Default: all.')
  parser.add_argument('--original_python')
  parser.add_argument('--original_path', default='')
  parser.add_argument('--t5x_python')
  parser.add_argument('--t5x_path', default='')
  parser.add_argument('--out', default=str(REPOSITORY / 'runs' / 'bench'))
  return parser.parse_args()


def measure(
  arguments: argparse.Namespace, folder: pathlib.Path
) -> Iterator[table.Row]:
  """The rows of all sections that were asked for, as they are measured."""
  where = arguments.mixture, arguments.data_dir, arguments.vocabulary
  vocab_size = surroundings.model_vocab_size(*where[1:])
  path = folder / 'workload.npz'
  batches.make(
    where,
    batch_size=arguments.batch_size,
    num_steps=max(8, arguments.steps),
  ).save(path)
  peers = {
    'original': (arguments.original_python, arguments.original_path),
    'T5X': (arguments.t5x_python, arguments.t5x_path),
  }
  task = step_time.Task(
    path,
    vocab_size,
    rounds=arguments.rounds,
    steps=arguments.steps,
    model=arguments.model,
    peers={
      name: (python, os.pathsep.join(filter(None, [str(REPOSITORY), more])))
      for name, (python, more) in peers.items()
      if python
    },
  )
  tiny = dataclasses.replace(task, model='tiny')  # eight times over
  label_task = arguments.mixture.removesuffix('dsbs') + 'label'
  sections = {
    'layouts': lambda: step_time.compare(task, 'layouts'),
    'shares': lambda: step_time.compare(task, 'shares'),
    'choices': choices.choices,
    'options': lambda: step_time.compare(task, 'options'),
    'peers': lambda: step_time.peers(task),
    'decoding': lambda: step_time.decoding(task),
    'loading': lambda: surroundings.loading(*where),
    'first_step': lambda: surroundings.first_step(*where),
    'evaluation': lambda: surroundings.evaluation(
      label_task, *where[1:], vocab_size
    ),
    'devices': lambda: step_time.compare(tiny, 'devices'),
    'data_sizes': surroundings.data_sizes,
  }
  for name in arguments.sections or sections:
    for row in sections[name]():
      print(
        f'{row.section}: {row.what}: {row.value:.4g} {row.unit}', flush=True
      )
      yield row


if __name__ == '__main__':
  main()
