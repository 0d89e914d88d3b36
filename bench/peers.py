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
from collections.abc import Iterator, Mapping

from bench import table, worker, workload

VOCAB_SIZE = 32_128  # of the public vocabulary
GEMMA_VOCAB_SIZE = 262_144
_LENGTHS = (8, 64)  # of a label's limit, and of a rationale
_OURS = 'this project'


@dataclasses.dataclass(frozen=True)
class Peer:
  """Where an engine is.

  Attributes:
    python: an interpreter that imports it.
    path: what that adds to PYTHONPATH.
  """

  python: str
  path: str = ''

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


_OURS_AS = Peer(sys.executable)


def decoding_table(
  peers: Mapping[str, Peer], *, rounds: int
) -> Iterator[table.Row]:
  """`decoding` of small on one core and on all, and of base on all."""
  yield from decoding(peers, 'small', rounds=rounds, cores=1)
  yield from decoding(peers, 'small', rounds=rounds, cores=None)
  yield from decoding(peers, 'base', rounds=min(2, rounds), cores=None)


def training_table(
  peers: Mapping[str, Peer], path: pathlib.Path, *, rounds: int
) -> Iterator[table.Row]:
  """`training` of small on one core and on all."""
  for cores, most in ((1, 1), (None, 2)):  # a step takes up to a minute
    yield from training(
      peers, path, model='small', rounds=min(most, rounds), cores=cores
    )


def decoding(
  peers: Mapping[str, Peer], model: str, *, rounds: int, cores: int | None
) -> Iterator[table.Row]:
  """Rows per second, 32 inputs of 25 to 60 tokens, 8 and 64 tokens generated.

  Args:
    peers: by the names 'transformers' and 'CTranslate2'.
    model: of `workload.SIZES`.
    rounds: measurements of each.
    cores: that each may use; None for all.
  """
  threads = cores or len(os.sched_getaffinity(0))
  flags = '--decode', f'--model={model}', f'--vocab_size={VOCAB_SIZE}'
  commands = {_OURS: (_OURS_AS, 'bench.ours', *flags, '--dropout=0')}
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
  with _started(commands, cores) as workers:
    for length in _LENGTHS:
      found = worker.race(workers, rounds=rounds, requests=[str(length)])
      yield from table.rows(
        f'Greedy decoding of {length} tokens, T5 {model}, {_named(threads)}',
        _per_second(found, 'rows'),
        'rows/s',
        against='transformers' if 'transformers' in found else _OURS,
        cpu=_cpu_seconds(found),
      )


def training(
  peers: Mapping[str, Peer],
  path: pathlib.Path,
  *,
  model: str,
  rounds: int,
  cores: int | None,
) -> Iterator[table.Row]:
  """Pairs per second of training steps.

  T5X is compared on its own layout of the rows, with its optimizer.

  Args:
    peers: by the names 'transformers' and 'T5X'.
    path: of the workload.
    model: of `workload.SIZES`.
    rounds: steps of each.
    cores: that each may use; None for all.
  """
  threads = cores or len(os.sched_getaffinity(0))
  data = workload.load(path)
  flags = (
    *(f'--workload={path}', f'--model={model}', f'--vocab_size={VOCAB_SIZE}'),
  )
  for name, command, layout in (
    ('transformers', ('bench.original', f'--threads={threads}'), ('packed',)),
    ('T5X', ('bench.beside_t5x',), ('mixed', '--adafactor')),
  ):
    if name not in peers:
      continue
    commands = {
      name: (peers[name], *command, *flags),
      _OURS: (_OURS_AS, 'bench.ours', *flags, f'--layout={layout[0]}')
      + layout[1:],
    }
    with _started(commands, cores) as workers:
      found = worker.race(workers, rounds=rounds, requests=['0'])
    for results in found.values():
      for result in results:
        result['pairs'] = data.facts['batch_size']
    yield from table.rows(
      f'Training beside {name}, T5 {model}, {_named(threads)},'
      f' {data.facts["batch_size"]} pairs of {data.facts["mixture"]}',
      _per_second(found, 'pairs'),
      'pairs/s',
      against=name,
      cpu=_cpu_seconds(found),
    )


def gemma_training(
  peers: Mapping[str, Peer], path: pathlib.Path, *, rounds: int
) -> Iterator[table.Row]:
  """Pairs per second and memory of training steps of Gemma 3 270M, all cores.

  Args:
    peers: by the name 'transformers'.
    path: of the workload, whose ids are those of Gemma's vocabulary.
    rounds: steps of each.
  """
  threads = len(os.sched_getaffinity(0))
  data = workload.load(path)
  flags = (
    *(f'--workload={path}', '--model=gemma3_270m', '--dropout=0'),
    f'--vocab_size={GEMMA_VOCAB_SIZE}',
  )
  commands = {_OURS: (_OURS_AS, 'bench.ours', *flags)}
  if 'transformers' in peers:
    command = 'bench.original', f'--threads={threads}'
    commands['transformers'] = (peers['transformers'], *command, *flags)
  with _started(commands, None) as workers:
    found = worker.race(workers, rounds=rounds, requests=['0'])
  pairs = data.facts['batch_size']
  for results in found.values():
    for result in results:
      result['pairs'] = pairs
  title = (
    f'Training of Gemma 3 270M, {_named(threads)},'
    f' {pairs} pairs of {data.facts["mixture"]}'
  )
  against = 'transformers' if 'transformers' in found else _OURS
  speed = _per_second(found, 'pairs')
  yield from table.rows(
    title, speed, 'pairs/s', against=against, cpu=_cpu_seconds(found)
  )
  memory = {
    f'{name}, most memory': [result['peak_bytes'] / 2**30 for result in results]
    for name, results in found.items()
  }
  yield from table.rows(title, memory, 'GiB')


@contextlib.contextmanager
def _started(commands, cores) -> Iterator[dict[str, worker.Worker]]:
  """Workers by name; commands: name -> (peer, module, *flags)."""
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


def _named(threads: int) -> str:
  return 'one core' if threads == 1 else f'{threads} cores'


def _per_second(found, what) -> dict[str, list[float]]:
  return {
    name: [result[what] / result['seconds'] for result in results]
    for name, results in found.items()
  }


def _cpu_seconds(found) -> dict[str, list[float]]:
  return {
    name: [result['cpu_seconds'] for result in results]
    for name, results in found.items()
  }
