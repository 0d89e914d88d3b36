# SPDX-License-Identifier: Apache-2.0
"""This project beside what a user could take instead, in one run.

Greedy decoding beside transformers and CTranslate2, training beside a plain
PyTorch step and T5X: on one core, and on all. Each engine is a process of its
own with its own libraries, and all take turns: a busy machine slows them all,
and CPU seconds tell how much each had to compute. Models are random T5s of
32,128 ids that never end early; the first round is not counted.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from bench import table, worker, workload

VOCAB_SIZE = 32_128  # of the public vocabulary
GEMMA_VOCAB_SIZE = 262_144
_LENGTHS = (8, 64)  # of a label's limit, and of a rationale
_OURS = 'this project'
# As many FLOPs as a step needs without padding, in large products of XLA: an
# engine can hardly be faster on this machine.
_BOUND = 'products alone'


@dataclasses.dataclass(frozen=True)
class Peer:
  """Where an engine is."""

  python: str  # an interpreter that imports it
  path: str = ''  # what that adds to PYTHONPATH

  def imports(self, *modules: str) -> bool:
    """Whether they are found."""
    found = subprocess.run(
      [self.python, '-c', 'import ' + ', '.join(modules)],
      env=self.environment,
      capture_output=True,
    )
    return found.returncode == 0

  @property
  def environment(self) -> dict[str, str]:
    """Variables of its processes."""
    here = str(pathlib.Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [here, self.path]))
    return {**os.environ, 'PYTHONPATH': path}


OURS_AS = Peer(sys.executable)


@contextlib.contextmanager
def started(
  commands: Mapping[str, Sequence], cores: int | None = None
) -> Iterator[dict[str, worker.Worker]]:
  """Workers by name, which end with the block.

  Args:
    commands: name -> (peer, module, *flags).
    cores: as in `worker.Worker`.
  """
  with contextlib.ExitStack() as stack:
    workers = {}
    for name, (peer, module, *flags) in commands.items():
      workers[name] = worker.Worker(
        module,
        *flags,
        python=peer.python,
        environment=peer.environment,
        cores=cores,
      )
      stack.callback(workers[name].close)
      print(f'{name}: {json.dumps(workers[name].ready)}', file=sys.stderr)
    yield workers


def decoding_table(
  peers: Mapping[str, Peer], *, rounds: int
) -> Iterator[table.Row]:
  """Greedy decoding of small on one core and on all, and of base on all."""
  yield from _decoding(peers, 'small', rounds=rounds, cores=1)
  yield from _decoding(peers, 'small', rounds=rounds, cores=None)
  yield from _decoding(peers, 'base', rounds=min(2, rounds), cores=None)


def training_table(
  peers: Mapping[str, Peer], path: pathlib.Path, *, rounds: int
) -> Iterator[table.Row]:
  """Training steps of small on one core and on all.

  T5X is compared on its own layout of the rows, with its optimizer. There are
  fewer rounds than asked for where a step takes up to a minute.
  """
  layouts = {'transformers': ('packed',), 'T5X': ('mixed', '--adafactor')}
  for cores, most in ((1, 1), (None, 2)):
    for name, (layout, *optimizer) in layouts.items():
      if name in peers:
        yield from _training(
          {name: peers[name]},
          path,
          *(f'--vocab_size={VOCAB_SIZE}', '--model=small'),
          ours=(f'--layout={layout}', *optimizer),
          title=f'beside {name}, T5 small',
          rounds=min(most, rounds),
          cores=cores,
        )


def gemma_training(
  peers: Mapping[str, Peer], path: pathlib.Path, *, rounds: int
) -> Iterator[table.Row]:
  """Training steps of Gemma 3 270M on all cores, and their memory.

  The workload's ids are those of Gemma's vocabulary.
  """
  yield from _training(
    {n: peer for n, peer in peers.items() if n == 'transformers'},
    path,
    *(f'--vocab_size={GEMMA_VOCAB_SIZE}', '--model=gemma3_270m', '--dropout=0'),
    title='of Gemma 3 270M',
    rounds=rounds,
    memory=True,
  )


def _decoding(
  peers: Mapping[str, Peer], model: str, *, rounds: int, cores: int | None
) -> Iterator[table.Row]:
  """Rows per second: 32 inputs of 25 to 60 tokens, 8 and 64 generated."""
  threads = _num_threads(cores)
  flags = '--decode', f'--model={model}', f'--vocab_size={VOCAB_SIZE}'
  commands = {_OURS: (OURS_AS, 'bench.ours', *flags, '--dropout=0')}
  if 'transformers' in peers:
    commands['transformers'] = (
      *(peers['transformers'], 'bench.original', *flags),
      f'--threads={threads}',
    )
  if 'CTranslate2' in peers:
    for kind in ('float32', 'int8'):
      commands[f'CTranslate2 {kind}'] = (
        *(peers['CTranslate2'], 'bench.beside_ct2', *flags),
        *(f'--kind={kind}', f'--threads={threads}'),
      )
  against = 'transformers' if 'transformers' in commands else _OURS
  with started(commands, cores) as workers:
    for length in _LENGTHS:
      found = worker.race(workers, rounds=rounds, requests=[str(length)])
      section = f'Greedy decoding of {length} tokens, T5 {model}'
      section += f', {_named(threads)}'
      yield from _rates(section, found, 'rows', against=against)


def _training(
  peers: Mapping[str, Peer],
  path: pathlib.Path,
  *flags: str,
  title: str,
  rounds: int,
  ours: Sequence[str] = (),
  cores: int | None = None,
  memory: bool = False,
) -> Iterator[table.Row]:
  """Pairs per second, ours and of peers; `ours`: flags of ours alone."""
  threads, data = _num_threads(cores), workload.load(path)
  pairs = data.facts['batch_size']
  flags = f'--workload={path}', *flags
  modules = {
    'transformers': ('bench.original', f'--threads={threads}'),
    'T5X': ('bench.beside_t5x',),
  }
  commands = {n: (peer, *modules[n], *flags) for n, peer in peers.items()}
  commands[_OURS] = (OURS_AS, 'bench.ours', *flags, *ours)
  commands[_BOUND] = (OURS_AS, 'bench.ours', *flags, '--part=products')
  with started(commands, cores) as workers:
    found = worker.race(workers, rounds=rounds, requests=['0'])
  for results in found.values():
    for result in results:
      result['pairs'] = pairs
  title = (
    f'Training {title}, {_named(threads)},'
    f' {pairs} pairs of {data.facts["mixture"]}'
  )
  yield from _rates(title, found, 'pairs', against=next(iter(commands)))
  if memory:
    most = {
      f'{name}, most memory': [r['peak_bytes'] / 2**30 for r in results]
      for name, results in found.items()
      if name != _BOUND
    }
    yield from table.rows(title, most, 'GiB')


def _num_threads(cores: int | None) -> int:
  return cores or len(os.sched_getaffinity(0))


def _named(threads: int) -> str:
  return 'one core' if threads == 1 else f'{threads} cores'


def _rates(
  section: str, found: Mapping[str, list[dict]], what: str, *, against: str
) -> Iterator[table.Row]:
  """Rows per second, or pairs, of each engine, and its CPU seconds."""
  yield from table.rows(
    section,
    {n: [r[what] / r['seconds'] for r in each] for n, each in found.items()},
    f'{what}/s',
    against=against,
    cpu={n: [r['cpu_seconds'] for r in each] for n, each in found.items()},
  )
