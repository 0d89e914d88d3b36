# SPDX-License-Identifier: Apache-2.0
"""Figures of one training step: layouts, shares, options, devices, peers."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence

from bench import table, worker, workload

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
_PEERS = {'original': 'bench.original', 'T5X': 'bench.beside_t5x'}
_PRODUCTS = "the machine's matrix products"


@dataclasses.dataclass(frozen=True)
class Task:
  """What is timed."""

  path: pathlib.Path  # of the workload
  vocab_size: int
  rounds: int = 5
  steps: int = 4  # per round
  model: str = 'mini'
  # Of what can be compared with: name -> interpreter and PYTHONPATH.
  peers: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

  @property
  def title(self) -> str:
    """Model and vocabulary."""
    return f'T5 {self.model}, vocabulary {self.vocab_size:,}'


def compare(task: Task, section: str) -> Iterator[table.Row]:
  """Seconds per step of the programs of a section of COMPARISONS."""
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


def peers(task: Task) -> Iterator[table.Row]:
  """This project's step beside the original's and T5X's, where they run."""
  for peer in task.peers:
    # T5X is compared on its own layout of the rows.
    layout, *flags = ('mixed', '--adafactor') if peer == 'T5X' else ('packed',)
    found, _ = _measure(
      task,
      {
        peer: (_PEERS[peer],),
        'this project': ('bench.ours', f'--layout={layout}', *flags),
        'matmul': ('bench.matmul',),
        'chain': ('bench.matmul', '--chain'),
      },
    )
    yield from _rates(found, task, peer, layout=layout)


def decoding(task: Task, length: int = 64) -> Iterator[table.Row]:
  """Greedy decoding of `length` tokens for each of a batch's inputs."""
  if 'original' not in task.peers:
    return
  flags = (f'--decode_len={length}', '--dropout=0')
  found, _ = _measure(
    task,
    {
      'original': ('bench.original', *flags),
      'this project': ('bench.ours', *flags),
      'this project, one stream': ('bench.ours', *flags, '--streams=1'),
    },
  )
  yield from table.rows(
    f'Greedy decoding of {length} tokens, {task.title}',
    {
      name: [r['tokens'] / r['seconds'] for r in results]
      for name, results in found.items()
    },
    'tokens/s',
    against='original',
  )


def _rates(found, task, peer, *, layout) -> Iterator[table.Row]:
  """Pairs per second, and the share of the machine's matrix products."""
  section = f'Training beside {peer}, {task.title}'
  data = workload.load(task.path)
  pairs = int(data.facts['batch_size'])
  ceiling, chain = (
    [result['flops'] / result['seconds'] / 1e9 for result in found.pop(name)]
    for name in ('matmul', 'chain')
  )
  rates = {
    name: [pairs / value for value in values]
    for name, values in _seconds(found, task).items()
  }
  yield from table.rows(section, rates, 'pairs/s', against=peer)
  config = workload.model(task.model, vocab_size=task.vocab_size)
  steps = range(task.steps)
  useful = sum(data.useful_flops(config, n) for n in steps)
  laid = sum(data.laid_flops(config, layout, n) for n in steps)

  def reached(flops):
    per_pair = flops / task.steps / pairs / 1e9
    return [per_pair * value for value in rates['this project']]

  for what, values in {
    'a chain of such products with their gradients': chain,
    'this project, useful arithmetic': reached(useful),
    'this project, arithmetic with padding': reached(laid),
  }.items():
    yield table.row(
      section, what, values, 'GFLOP/s', others=ceiling, against=_PRODUCTS
    )


def _seconds(found, task) -> dict[str, list[float]]:
  return {
    name: [result['seconds'] / task.steps for result in results]
    for name, results in found.items()
  }


def _measure(
  task: Task, commands: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[dict]], dict[str, dict]]:
  """Lets workers take turns.

  Args:
    task: what they compute.
    commands: name -> module and flags; a peer's name takes its interpreter.

  Returns:
    name -> its results, and what it said when it was ready.
  """
  workers = {}
  with contextlib.ExitStack() as stack:
    for name, (module, *flags) in commands.items():
      python, path = task.peers.get(name, (sys.executable, None))
      if module != 'bench.matmul':
        flags += f'--workload={task.path}', f'--vocab_size={task.vocab_size}'
      workers[name] = worker.Worker(
        module,
        *flags,
        python=python,
        environment={} if path is None else {'PYTHONPATH': path},
      )
      stack.callback(workers[name].close)
    requests = [str(number) for number in range(task.steps)]
    found = worker.race(workers, rounds=task.rounds, requests=requests)
  return found, {name: started.ready for name, started in workers.items()}
