# SPDX-License-Identifier: Apache-2.0
"""Figures of one training step: layouts, shares, options, devices."""

import dataclasses
import pathlib
from collections.abc import Iterator

from bench import peers, table, worker

# Section -> its title, and name -> flags of bench.ours; all are compared with
# the first.
COMPARISONS = {
  'layouts': (
    'Layouts',
    {
      name: (f'--layout={name}',)
      for name in ('padded', 'bucketed', 'whole rows', 'packed')
    },
  ),
  # The whole step, its parts, and the step without some of its pieces.
  'shares': (
    'Shares of a step',
    {
      **{n: (f'--part={n}',) for n in ('step', 'gradients', 'forward')},
      'step without dropout': ('--dropout=0',),
      'step without scores and their softmax': ('--no_scores',),
    },
  ),
  'options': (
    'Options',
    {
      'default': (),
      'without dropout': ('--dropout=0',),
      'memory given back (DSBS_KEEP_MEMORY=0)': ('--keep_memory=0',),
      'logits in chunks of 512 tokens': ('--chunk_tokens=512',),
      'both views in one pass': ('--join_views=1',),
      'remat full': ('--remat=full',),
      'bfloat16 activations': ('--dtype=bfloat16',),
      'Adafactor': ('--adafactor',),
      'products by Eigen, not by YNNPACK': ('--eigen',),
    },
  ),
  # Simulated devices share the machine's cores, so nothing gets faster: this is
  # the price of cutting the work up, collectives and smaller products.
  'devices': (
    'Simulated devices (data x model) on the same cores',
    {
      mesh: ('--layout=whole rows', f'--mesh={mesh}')
      for mesh in ('1x1', '2x1', '4x1', '8x1', '4x2', '2x4')
    },
  ),
}


@dataclasses.dataclass(frozen=True)
class Task:
  """What is timed."""

  path: pathlib.Path  # of the workload
  vocab_size: int
  rounds: int = 5
  steps: int = 4  # per round
  model: str = 'mini'


def compare(task: Task, section: str) -> Iterator[table.Row]:
  """Seconds per step of the programs of a section, against the first."""
  title, variants = COMPARISONS[section]
  flags = (
    f'--model={task.model}',
    f'--workload={task.path}',
    f'--vocab_size={task.vocab_size}',
  )
  commands = {
    name: (peers.OURS_AS, 'bench.ours', *flags, *own)
    for name, own in variants.items()
  }
  requests = [str(number) for number in range(task.steps)]
  with peers.started(commands) as workers:
    found = worker.race(workers, rounds=task.rounds, requests=requests)
  seconds = {
    name: [result['seconds'] / task.steps for result in results]
    for name, results in found.items()
  }
  against = next(iter(variants))
  for name, values in seconds.items():
    facts = workers[name].ready
    memory = facts.get('argument_bytes', 0) + facts.get('temporary_bytes', 0)
    yield table.row(
      f'{title}, T5 {task.model}, vocabulary {task.vocab_size:,}',
      name + (f', {memory / 2**20:,.0f} MiB' if memory else ''),
      values,
      's/step',
      others=seconds[against],
      against=against,
    )
