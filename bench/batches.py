# SPDX-License-Identifier: Apache-2.0
"""python -m bench.batches: writes the batches that the benchmarks compute."""

import argparse
import pathlib

from bench import workload
from dsbs_jax.data import register
from dsbs_jax.data.batching import batch_order, layouts, loader
from dsbs_jax.data.prepared import tokens

LAYOUTS = {
  'packed': layouts.Packed,
  'bucketed': layouts.Bucketed,
  'padded': layouts.Padded,
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--mixture', default='cqa_gt_dsbs')
  parser.add_argument('--data_dir', required=True)
  parser.add_argument('--vocabulary', required=True)
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--num_steps', type=int, default=16)
  parser.add_argument('--out', required=True, help='Of the .npz file.')
  arguments = parser.parse_args()
  source = register.source(
    data_dir=arguments.data_dir, vocabulary=arguments.vocabulary
  )
  sizes = {n: getattr(arguments, n) for n in ('batch_size', 'num_steps')}
  made = make(arguments.mixture, source, **sizes)
  made.save(pathlib.Path(arguments.out))
  for description in made.facts['layouts'].values():
    print(description)
  print(f'written: {arguments.out}')


def make(
  name: str, source: tokens.Source, *, batch_size: int, num_steps: int
) -> workload.Workload:
  """Lays out the first batches of a mixture; `batch_size` counts pairs."""
  paired = batch_order.BatchOrder(batch_size=batch_size)
  # Both tasks in the same rows, as a seqio mixture packs them for T5X: in the
  # rows that suit a network which computes them whole.
  mixed = batch_order.BatchOrder(batch_size=2 * batch_size, paired=False)
  (packer,) = loader.open(name, source, mixed).packers.values()
  _, inputs, targets = packer.shapes[0][:3]
  orders = {layout: (paired, make()) for layout, make in LAYOUTS.items()}
  orders['mixed'] = (
    mixed,
    layouts.Packed({'inputs': inputs, 'targets': targets}),
  )
  orders['whole rows'] = paired, layouts.Packed()
  arrays, described = {}, {}
  for layout, (order, how) in orders.items():
    data = loader.open(
      name, source, order, layout=how, skip_padding=layout != 'whole rows'
    )
    described[layout] = data.describe()
    for step in range(num_steps):
      for view, rows in data.batch(step).items():
        for feature, array in rows.items():
          arrays[f'{layout}/{step}/{view}/{feature}'] = array
  facts = {
    'mixture': name,
    'vocabulary': source.vocabulary,
    'batch_size': batch_size,
    'num_steps': num_steps,
    'layouts': described,
  }
  return workload.Workload(facts, arrays)


if __name__ == '__main__':
  main()
