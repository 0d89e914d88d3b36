# SPDX-License-Identifier: Apache-2.0
"""Figures of one training step: layouts, shares, options, peers."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Mapping

from bench import table, worker, workload


@dataclasses.dataclass(frozen=True)
class Task:
  """What is timed.

  Attributes:
    path: of the workload.
    vocab_size: of the model.
    rounds: how often.
    steps: batches per round.
    model: a name of workload.SIZES.
    peers: name -> interpreter, of those that can be compared with.
    peer_paths: name -> PYTHONPATH of that interpreter.
  """

  path: pathlib.Path
  vocab_size: int
  rounds: int = 5
  steps: int = 4
  model: str = 'mini'
  peers: Mapping[str, str] = dataclasses.field(default_factory=dict)
  peer_paths: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def arguments(self) -> tuple[str, ...]:
    """For every worker."""
    return f'--workload={self.path}', f'--vocab_size={self.vocab_size}'

  @property
  def title(self) -> str:
    """Model and vocabulary."""
    return f'T5 {self.model}, vocabulary {self.vocab_size:,}'

  def requests(self) -> list[str]:
    """The batches of a round."""
    return [str(number) for number in range(self.steps)]


def layouts(task: Task) -> Iterator[table.Row]:
  """Padded, bucketed, packed, and that without computing its padding."""
  variants = {
    name: (f'--layout={name}', f'--model={task.model}')
    for name in ('padded', 'bucketed', 'whole rows', 'packed')
  }
  yield from _compare(task, variants, 'Layouts', against='padded')


def shares(task: Task) -> Iterator[table.Row]:
  """The whole step, its parts, and the step without some of its pieces."""
  variants = {
    name: (f'--part={name}', f'--model={task.model}')
    for name in ('step', 'gradients', 'forward')
  }
  variants |= {
    'step without dropout': ('--dropout=0', f'--model={task.model}'),
    'step without scores and their softmax': (
      '--no_scores',
      f'--model={task.model}',
    ),
  }
  yield from _compare(task, variants, 'Shares of a step', against='step')


def options(task: Task) -> Iterator[table.Row]:
  """What may be switched: each against the default."""
  variants = {
    'default': (),
    'without dropout': ('--dropout=0',),
    'memory given back (DSBS_KEEP_MEMORY=0)': ('--keep_memory=0',),
    'logits in chunks of 512 tokens': ('--chunk_tokens=512',),
    'remat full': ('--remat=full',),
    'bfloat16 activations': ('--dtype=bfloat16',),
    'Adafactor': ('--adafactor',),
  }
  variants = {
    name: (*flags, f'--model={task.model}') for name, flags in variants.items()
  }
  yield from _compare(task, variants, 'Options', against='default')


def peers(task: Task) -> Iterator[table.Row]:
  """This project's step beside the original's and T5X's, where they run."""
  modules = {'original': 'bench.original', 'T5X': 'bench.beside_t5x'}
  for name, python in task.peers.items():
    ours = f'--layout={layout_beside(name)}'
    with contextlib.ExitStack() as stack:
      workers = {
        name: _started(
          stack,
          modules[name],
          task,
          python=python,
          environment={'PYTHONPATH': task.peer_paths[name]},
        ),
        'this project': _started(
          stack, 'bench.ours', task, ours, *_adafactor(name)
        ),
        'matmul': _entered(stack, worker.Worker('bench.matmul')),
        'chain': _entered(stack, worker.Worker('bench.matmul', '--chain')),
      }
      found = worker.take_turns(
        workers, rounds=task.rounds, requests=task.requests()
      )
    yield from _rates(
      found, task, f'Training beside {name}, {task.title}', against=name
    )


def decoding(task: Task, length: int = 64) -> Iterator[table.Row]:
  """Greedy decoding of `length` tokens for each of a batch's inputs."""
  python = task.peers.get('original')
  if python is None:
    return
  with contextlib.ExitStack() as stack:
    flags = (f'--decode_len={length}', '--dropout=0')
    workers = {
      'original': _started(
        stack,
        'bench.original',
        task,
        *flags,
        python=python,
        environment={'PYTHONPATH': task.peer_paths['original']},
      ),
      'this project': _started(stack, 'bench.ours', task, *flags),
      'this project, one stream': _started(
        stack, 'bench.ours', task, *flags, '--streams=1'
      ),
    }
    found = worker.take_turns(
      workers, rounds=task.rounds, requests=task.requests()
    )
  rates = {
    name: [r['tokens'] / r['seconds'] for r in results]
    for name, results in found.items()
  }
  for name, values in rates.items():
    yield table.row(
      f'Greedy decoding of {length} tokens, {task.title}',
      name,
      values,
      'tokens/s',
      others=rates['original'],
      against='original',
    )


def _adafactor(name) -> tuple[str, ...]:
  return ('--adafactor',) if name == 'T5X' else ()


def _compare(task, variants, section, *, against) -> Iterator[table.Row]:
  with contextlib.ExitStack() as stack:
    workers = {
      name: _started(stack, 'bench.ours', task, *flags)
      for name, flags in variants.items()
    }
    found = worker.take_turns(
      workers, rounds=task.rounds, requests=task.requests()
    )
    memory = {
      name: sum(
        started.ready.get(key, 0)
        for key in ('argument_bytes', 'temporary_bytes')
      )
      for name, started in workers.items()
    }
  seconds = _seconds(found, task)
  for name, values in seconds.items():
    more = f', {memory[name] / 2**20:,.0f} MiB' if memory[name] else ''
    yield table.row(
      f'{section}, {task.title}',
      name + more,
      values,
      's/step',
      others=seconds[against],
      against=against,
    )


def _rates(found, task, section, *, against) -> Iterator[table.Row]:
  """Pairs per second, and the share of the machine's matrix products."""
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
  for name, values in rates.items():
    yield table.row(
      section, name, values, 'pairs/s', others=rates[against], against=against
    )
  yield table.row(
    section,
    'a chain of such products with their gradients',
    chain,
    'GFLOP/s',
    others=ceiling,
    against="the machine's matrix products",
  )
  config = workload.model(task.model, vocab_size=task.vocab_size)
  steps = range(task.steps)
  work = {
    'useful arithmetic': [data.useful_flops(config, n) for n in steps],
    'arithmetic with padding': [
      data.laid_flops(config, layout_beside(against), n) for n in steps
    ],
  }
  for name, flops in work.items():
    per_pair = sum(flops) / task.steps / pairs / 1e9
    yield table.row(
      section,
      f'this project, {name}',
      [per_pair * value for value in rates['this project']],
      'GFLOP/s',
      others=ceiling,
      against="the machine's matrix products",
    )


def layout_beside(peer: str) -> str:
  """T5X is compared on its own layout of the rows."""
  return 'mixed' if peer == 'T5X' else 'packed'


def _seconds(found, task) -> dict[str, list[float]]:
  return {
    name: [result['seconds'] / task.steps for result in results]
    for name, results in found.items()
  }


def _started(
  stack, module, task, *flags, python=sys.executable, environment=None
) -> worker.Worker:
  return _entered(
    stack,
    worker.Worker(
      module, *task.arguments, *flags, python=python, environment=environment
    ),
  )


def _entered(stack, started: worker.Worker) -> worker.Worker:
  """It ends with the stack."""
  stack.callback(started.close)
  return started
