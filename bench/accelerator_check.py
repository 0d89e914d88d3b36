# SPDX-License-Identifier: Apache-2.0
"""python -m bench.accelerator_check: what an accelerator does, in nine minutes.

Runs on one GPU, or with --kind=tpu on a TPU VM, with jax, flax, optax and
numpy: no network, no TensorFlow, no vocabulary. Inputs are batches of `python
-m bench.batches`, of fewer and of more pairs. Each configuration is a process
of its own (`bench.accelerator`), so that its peak memory is its own. On a GPU
all compile at the same time, then each measures alone; a TPU is opened by one
process after the other, and what they compiled is kept for the next check.

With --compile_for=v5e,v6e nothing is measured: the programs are compiled for
these TPUs, on any machine with libtpu, with the least effort of the compiler,
which takes a third of the time (JAX_EXEC_TIME_OPTIMIZATION_EFFORT=0: as usual).

What was measured is written after every configuration, as JSON and as a table,
so that a check that is stopped keeps what it has.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

from bench import check_parts, worker

_PEER_RUNS = 4  # the first of which warms up
_COMPILING = 0.6  # share of the time that is left
# Greedy decoding by transformers on the same device, where it is installed.
PEERS = {f'transformers, base, {rows} rows': rows for rows in (1, 32, 256)}
_COLUMNS = (
  ('ms per run', 'seconds_per_step', 1e3, '.2f'),
  ('pairs/s', 'pairs_per_second', 1, ',.0f'),
  ('tokens/s', 'tokens_per_second', 1, ',.0f'),
  ('MFU', 'mfu', 100, '.1f'),
  ('useful share', 'utilisation_useful', 100, '.1f'),
  ('with padding', 'utilisation_with_padding', 100, '.1f'),
  ('10,000 steps, min', 'minutes_for_10000_steps', 1, '.1f'),
  ('peak GiB', 'peak_bytes', 2**-30, '.2f'),
  ('planned GiB', 'compiled_bytes', 2**-30, '.2f'),
  ('compiling, s', 'compile_seconds', 1, '.0f'),
)


def main() -> None:
  arguments = parse()
  kind = check_parts.KINDS[arguments.kind]
  arguments.at_once = arguments.at_once or kind.at_once
  names = arguments.parts.split(',') if arguments.parts else kind.names
  deadline = time.monotonic() + arguments.minutes * 60
  check = Check(arguments, deadline)
  wanted = {
    name: flags.split()
    for part in names
    for name, flags in kind.parts.get(part, {}).items()
  }
  if arguments.only:
    wanted = {n: f for n, f in wanted.items() if n in arguments.only}
  if arguments.compile_for:
    wanted = {
      f'{device}: {name}': (*flags, f'--compile_for={device}')
      for device in arguments.compile_for.split(',')
      for name, flags in wanted.items()
    }
    names = []
  check.run(
    wanted, parity='parity' in names, peers=kind.peers and 'peers' in names
  )
  print(check.table())


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--inputs', type=pathlib.Path, required=True, help='Batches of 64 pairs.'
  )
  parser.add_argument('--more', type=pathlib.Path, help='Batches of 256.')
  parser.add_argument('--kind', choices=check_parts.KINDS, default='gpu')
  parser.add_argument('--out', type=pathlib.Path, default='runs/accelerator')
  parser.add_argument('--parts', help='Those to run, such as parity,train.')
  parser.add_argument('--only', nargs='*', help='Configurations, by name.')
  parser.add_argument(
    '--minutes', type=float, default=9, help='What is not done then is left.'
  )
  parser.add_argument(
    '--model', help='In place of every model, such as tiny on a CPU.'
  )
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--product_size', type=int, default=8192)
  parser.add_argument('--peer_device', default='cuda', help="transformers'.")
  parser.add_argument(
    '--at_once', type=int, help='Processes that compile together; 1 on a TPU.'
  )
  parser.add_argument(
    '--compile_for', help='TPUs, such as v5e,v5p,v6e. Nothing is measured.'
  )
  return parser.parse_args()


@dataclasses.dataclass
class Check:
  """One check: its flags, its end, and what was measured."""

  arguments: argparse.Namespace
  deadline: float
  found: dict[str, dict] = dataclasses.field(default_factory=dict)

  def run(
    self, wanted: Mapping[str, Sequence[str]], *, parity: bool, peers: bool
  ) -> None:
    """Measures what is wanted, until the time is over.

    Args:
      wanted: name of a configuration -> its flags.
      parity: whether recordings are compared with: meanwhile, but first where
        one process at a time may open the device.
      peers: whether transformers decodes in the end.
    """
    comparing = self.start_parity() if parity else None
    if comparing and self.arguments.at_once == 1:
      self.collect('parity', comparing, share=_COMPILING)
      comparing = None
    self.measure(wanted)
    if comparing:
      self.collect('parity', comparing)
    if peers:
      for name, rows in PEERS.items():
        self.peer(name, rows)

  def start_parity(self) -> subprocess.Popen:
    """How near the device comes to recordings of torch, meanwhile."""
    print('begun: parity', flush=True)
    return self._open([sys.executable, '-m', 'bench.parity'])

  def measure(self, wanted: Mapping[str, Sequence[str]]) -> None:
    """Compiles some configurations at once, then measures each alone."""
    names = list(wanted)
    for start in range(0, len(names), self.arguments.at_once):
      group = names[start : start + self.arguments.at_once]
      print(f'begun: {"; ".join(group)}', flush=True)  # it may take minutes
      with tempfile.TemporaryDirectory() as folder:
        marks = {
          name: pathlib.Path(folder) / str(i) for i, name in enumerate(group)
        }
        running = {
          name: self._start(wanted[name], marks[name]) for name in group
        }
        # The rest of the time is for measuring; what compiles still is left.
        compile_until = time.monotonic() + _COMPILING * self._left()
        while time.monotonic() < compile_until and not all(
          marks[name].exists() or process.poll() is not None
          for name, process in running.items()
        ):
          time.sleep(0.2)
        for name, process in running.items():
          if not marks[name].exists():
            process.kill()
          self.collect(name, process)

  def collect(
    self, name: str, process: subprocess.Popen, *, share: float = 1.0
  ) -> None:
    """Lets a process measure, for a share of the time that is left."""
    try:
      output, _ = process.communicate('\n', timeout=share * self._left())
    except subprocess.TimeoutExpired:
      process.kill()
      output, _ = process.communicate()
    self._keep(name, process.returncode, output)

  def peer(self, name: str, rows: int) -> None:
    """Times what transformers does on this device."""
    arguments = self.arguments
    flags = [
      f'--workload={arguments.inputs}',
      f'--model={arguments.model or "base"}',
      f'--device={arguments.peer_device}',
      '--dtype=bfloat16',
      '--decode',
      f'--decode_rows={rows}',
    ]
    try:
      with contextlib.closing(worker.Worker('bench.original', *flags)) as peer:
        runs = [peer.ask('64') for _ in range(_PEER_RUNS)][1:]
    except worker.Failed as error:
      self._keep(name, str(error), '')
      return
    seconds = statistics.median(run['seconds'] for run in runs)
    figures = {
      'seconds_per_step': seconds,
      'tokens_per_second': runs[-1]['tokens'] / seconds,
    }
    self._keep(name, 0, json.dumps(figures))

  def table(self) -> str:
    """What was measured, as Markdown."""
    lines = [
      '| configuration | ' + ' | '.join(c[0] for c in _COLUMNS) + ' |',
      '|---' * (len(_COLUMNS) + 1) + '|',
    ]
    lines += [
      f'| {name} | ' + ' | '.join(_cells(figures)) + ' |'
      for name, figures in self.found.items()
      if 'compile_seconds' in figures or 'seconds_per_step' in figures
    ]
    return '\n'.join(lines)

  def _start(
    self, flags: Sequence[str], mark: pathlib.Path
  ) -> subprocess.Popen:
    asked = self.arguments
    xla = '--xla_flags='
    more = f'--workload={check_parts.MORE}'
    decodes = any(flag.startswith('--decode_rows') for flag in flags)
    own = [f for f in flags if f != more and not f.startswith(xla)]
    command = [
      *(sys.executable, '-m', 'bench.accelerator', f'--wait={mark}'),
      f'--workload={(more in flags and asked.more) or asked.inputs}',
      f'--steps={10 if decodes else asked.steps}',
      f'--product_size={asked.product_size}',
      *own,
      *([f'--model={asked.model}'] if asked.model else []),
    ]
    return self._open(
      command, *(f.removeprefix(xla) for f in flags if f.startswith(xla))
    )

  def _open(self, command: Sequence[str], *xla_flags: str) -> subprocess.Popen:
    """Starts a process, which may share the device with others."""
    flags = ' '.join([os.environ.get('XLA_FLAGS', ''), *xla_flags]).strip()
    environment = os.environ | {
      'XLA_FLAGS': flags,
      'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
    }
    if self.arguments.compile_for:
      environment.setdefault('JAX_EXEC_TIME_OPTIMIZATION_EFFORT', '-1')
    elif self.arguments.at_once == 1:
      # A check that was stopped goes on where it compiled.
      cache = str((self.arguments.out / 'compiled').absolute())
      environment.setdefault('JAX_COMPILATION_CACHE_DIR', cache)
    return subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=environment,
    )

  def _left(self) -> float:
    """Seconds until the deadline."""
    return max(self.deadline - time.monotonic(), 1)

  def _keep(self, name: str, status: object, output: str) -> None:
    """Takes in a process's JSON, and writes all that is there so far."""
    try:
      self.found[name] = json.loads(output)
    except ValueError:
      self.found[name] = {'failed': f'status {status}'}
    folder = self.arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'accelerator.json').write_text(json.dumps(self.found, indent=1))
    (folder / 'accelerator.md').write_text(self.table() + '\n')
    figures = self.found[name]
    told = figures.get('failed') or '  '.join(filter(None, _cells(figures)))
    print(f'{name}: {told or "done"}', flush=True)


def _cells(figures: Mapping[str, float]) -> Iterator[str]:
  for _, name, factor, how in _COLUMNS:
    value = figures.get(name)
    yield '' if value is None else format(value * factor, how)


if __name__ == '__main__':
  main()
