# SPDX-License-Identifier: Apache-2.0
"""python -m bench.suite: everything that docs/performance.md reports, measured.

Without flags: this project at T5 small and base beside the engines that are
installed, in about ten minutes. --sections=all measures everything, --sections
with names some of it. With a prepared benchmark:

  python -m bench.suite --mixture=cqa_gt_dsbs --data_dir=data \\
    --vocabulary=sentencepiece.model

--sections=gemma measures Gemma 3 270M, with rows that its vocabulary cut up
(--vocabulary=tokenizer.model). Engines that need an interpreter of their own:
--hf_python (torch and transformers), --ct2_python, --t5x_python with
--t5x_path.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
import tempfile
from collections.abc import Iterator

from bench import batches, choices, peers, step_time, surroundings, table
from dsbs_jax.data import register


def main() -> None:
  """Writes bench.md and bench.json."""
  arguments = _parse()
  with tempfile.TemporaryDirectory() as folder:
    if arguments.data_dir is None:
      arguments.data_dir = f'{folder}/data'
      source = surroundings.BUNDLED
      arguments.vocabulary = surroundings.prepare(source, arguments.data_dir)
    rows = list(_measure(arguments, pathlib.Path(folder)))
  facts = table.machine() | {
    'mixture': arguments.mixture,
    'vocabulary': pathlib.Path(arguments.vocabulary).name,
    'command': ' '.join(['python -m bench.suite', *sys.argv[1:]]),
  }
  table.write(pathlib.Path(arguments.out), rows, facts)


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--mixture', default='parcels_gt_dsbs')
  parser.add_argument('--data_dir', help='Prepared; default: bundled rows.')
  parser.add_argument('--vocabulary')
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=4, help='Per round.')
  parser.add_argument('--model', default='mini', help='Of the other sections.')
  parser.add_argument(
    '--sections',
    nargs='+',
    default=['decoding', 'training'],
    help='Or those named, or all.',
  )
  parser.add_argument('--hf_python', default=sys.executable)
  parser.add_argument('--ct2_python', default=sys.executable)
  parser.add_argument('--t5x_python', default=sys.executable)
  parser.add_argument('--hf_path', default='', help='Of PYTHONPATH.')
  parser.add_argument('--ct2_path', default='', help='The same.')
  parser.add_argument('--t5x_path', default='', help='The same.')
  parser.add_argument('--out', default=surroundings.REPOSITORY / 'runs/bench')
  arguments = parser.parse_args()
  if arguments.data_dir and not arguments.vocabulary:
    parser.error('--data_dir is given without --vocabulary, expected both')
  return arguments


def _found_peers(arguments: argparse.Namespace) -> dict[str, peers.Peer]:
  """The engines that are there; says which are not."""
  found = {}
  for name, short, modules in (
    ('transformers', 'hf', ('torch', 'transformers')),
    ('CTranslate2', 'ct2', ('ctranslate2', 'dsbs_jax.interop.ct2_model')),
    ('T5X', 't5x', ('t5x.trainer',)),
  ):
    given = (getattr(arguments, f'{short}_{of}') for of in ('python', 'path'))
    peer = peers.Peer(*given)
    if peer.imports(*modules):
      found[name] = peer
    else:
      print(
        f'{name} is left out: {peer.python} does not import'
        f' {" and ".join(modules)}; see --{short}_python, --{short}_path.',
        flush=True,
      )
  return found


def _measure(
  arguments: argparse.Namespace, folder: pathlib.Path
) -> Iterator[table.Row]:
  """The rows of all sections that were asked for, as they are measured."""
  name, rounds = arguments.mixture, arguments.rounds
  source = register.source(
    data_dir=arguments.data_dir, vocabulary=arguments.vocabulary
  )
  path = folder / 'workload.npz'
  one = folder / 'one.npz'  # workers warm up on all steps that there are
  for file, num_steps in ((path, max(8, arguments.steps)), (one, 1)):
    batches.make(
      name, source, batch_size=arguments.batch_size, num_steps=num_steps
    ).save(file)
  task = step_time.Task(
    path,
    surroundings.model_vocab_size(source),
    rounds=rounds,
    steps=arguments.steps,
    model=arguments.model,
  )
  tiny = dataclasses.replace(task, model='tiny')  # eight times over
  label_task = name.removesuffix('dsbs') + 'label'
  engines = functools.cache(lambda: _found_peers(arguments))
  sections = {
    'decoding': lambda: peers.decoding_table(engines(), rounds=rounds),
    'training': lambda: peers.training_table(engines(), one, rounds=rounds),
    'gemma': lambda: peers.gemma_training(engines(), one, rounds=rounds),
    'layouts': lambda: step_time.compare(task, 'layouts'),
    'shares': lambda: step_time.compare(task, 'shares'),
    'choices': choices.choices,
    'options': lambda: step_time.compare(task, 'options'),
    'loading': lambda: surroundings.loading(name, source),
    'first_step': lambda: surroundings.first_step(name, source),
    'evaluation': lambda: surroundings.evaluation(label_task, source),
    'devices': lambda: step_time.compare(tiny, 'devices'),
    'data_sizes': surroundings.data_sizes,
  }
  chosen = sections if 'all' in arguments.sections else arguments.sections
  if unknown := {*chosen} - {*sections}:
    raise SystemExit(
      f'--sections has {sorted(unknown)}, expected all or {[*sections]}'
    )
  for section in chosen:
    for row in sections[section]():
      print(
        f'{row.section}: {row.what}: {row.value:.4g} {row.unit}'
        + (f', CPU seconds {row.cpu_seconds:.4g}' if row.cpu_seconds else ''),
        flush=True,
      )
      yield row


if __name__ == '__main__':
  main()
