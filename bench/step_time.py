# SPDX-License-Identifier: Apache-2.0
"""Figures of one training step: layouts, shares, options, devices."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from bench import table, worker

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

  @property
  def title(self) -> str:
    """Model and vocabulary."""
    return f'T5 {self.model}, vocabulary {self.vocab_size:,}'


def compare(task: Task, section: str) -> Iterator[table.Row]:
  """Seconds per step of some programs, against the first of them.

  Args:
    task: what they compute.
    section: of COMPARISONS.
  """
  title, variants = COMPARISONS[section]
  found, ready = _measure(
    task,
    {
      name: ('bench.ours', f'--model={task.model}', *flags)
      for name, flags in variants.items()
    },
  )
  names = {}
  for name, facts in ready.items():
    memory = facts.get('argument_bytes', 0) + facts.get('temporary_bytes', 0)
    names[name] = name + (f', {memory / 2**20:,.0f} MiB' if memory else '')
  seconds = _seconds(found, task)
  against = next(iter(variants))
  for name, values in seconds.items():
    yield table.row(
      f'{title}, {task.title}',
      names[name],
      values,
      's/step',
      others=seconds[against],
      against=against,
    )


def _seconds(found, task) -> dict[str, list[float]]:
  return {
    name: [result['seconds'] / task.steps for result in results]
    for name, results in found.items()
  }


def _measure(
  task: Task, commands: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[dict]], dict[str, dict]]:
  """Lets workers of this interpreter take turns.

  Args:
    task: what they compute.
    commands: name -> module and flags.

  Returns:
    name -> its results, and what it said when it was ready.
  """
  workers = {}
  with contextlib.ExitStack() as stack:
    for name, (module, *flags) in commands.items():
      flags += f'--workload={task.path}', f'--vocab_size={task.vocab_size}'
      workers[name] = worker.Worker(module, *flags)
      stack.callback(workers[name].close)
    requests = [str(number) for number in range(task.steps)]
    found = worker.race(workers, rounds=task.rounds, requests=requests)
  return found, {name: started.ready for name, started in workers.items()}
