# SPDX-License-Identifier: Apache-2.0
"""python -m bench.bench_serve: requests per second and latency of a server.

Servers of one random student, which answers like a trained one of its size
but does not stop before its longest length: each backend answers several inputs
together, and the first one also one at a time. Clients on loopback, in one
process of their own, send one input per request and the next one as soon as
they have their answer; the servers are measured in turns. CPU time is the
server's and, other than the rest, the same on a machine that is busy with more.
Prints Markdown tables; the second one has the seconds until a server is ready,
while nothing else runs, and its memory.
"""

import asyncio
import contextlib
import functools
import itertools
import pathlib
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator

import aiohttp
from absl import flags

from bench import worker
from dsbs_jax.interop import ct2_model
from dsbs_jax.runtime import command
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.serving import server as server_lib
from tests.inference import small_student
from tests.serving import serving_process

_MODEL = flags.DEFINE_string('model', 'small', 'A file of gin/models.')
_BACKENDS = flags.DEFINE_list(
  'backends', None, 'Values of BACKEND; default: jax, and ct2 if installed.'
)
_CLIENTS = flags.DEFINE_list('clients', ['1', '8', '64'], 'Clients at once.')
_SECONDS = flags.DEFINE_float('seconds', 3.0, 'Of one measurement.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Measurements of each.')
_RATIONALES = flags.DEFINE_bool('rationales', False, 'Ask for them, too.')
_BATCHES = flags.DEFINE_list('batch_sizes', ['1', '8', '32'], 'With batching.')

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_FILES = ('benchmarks/parcels',)
_MACROS = {
  'VOCABULARY': 'bytes',
  'VOCAB_SIZE': 32_128,  # of the public vocabulary
  'MAX_DECODE_LEN': 8,
  'MAX_RATIONALE_LEN': 32,
  'INPUT_LENGTHS': (64,),
}
# 34 to 46 tokens, prefix and end included.
_TEXTS = [f'{"big " * (i % 4)}parcel {i} or parcel {i + 1}?' for i in range(90)]


def main() -> None:
  """Prints medians over the repeats."""
  # Stopped from outside, it ends its servers too.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
  batched = tuple(map(int, _BATCHES.value))
  with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
    folder = pathlib.Path(name)
    macros = _MACROS | {
      'CHECKPOINT_PATH': str(folder / 'run'),
      'RATIONALES': _RATIONALES.value,
    }
    files = (f'models/{_MODEL.value}', *_FILES)
    _write_student(folder, files, macros)
    servers, started = {}, []
    chosen = _BACKENDS.value or ['jax']
    if not _BACKENDS.value and ct2_model.is_installed():
      chosen += ['ct2', 'ct2_int8']
    for backend, sizes in (*((x, batched) for x in chosen), (chosen[0], (1,))):
      name = f'{backend}, batches up to {sizes[-1]}'
      begin = time.perf_counter()
      servers[name] = stack.enter_context(
        serving_process.Process(
          *(folder / f'{name}.log', *files),
          **macros,
          BACKEND=backend,
          BATCH_SIZES=sizes,
        )
      )
      servers[name].wait()
      started.append((name, time.perf_counter() - begin))
    print('\n'.join(_rows(servers)))
    print('\n| server | ready after, s | memory, MiB | at most, MiB |')
    print('|---|---:|---:|---:|')
    for name, seconds in started:
      memory = ' | '.join(f'{mib:,.0f}' for mib in _memory(servers[name]))
      print(f'| {name} | {seconds:.1f} | {memory} |')


def _write_student(folder: pathlib.Path, files, macros) -> None:
  run = gin_config.build(
    server_lib.ServeConfig,
    gin_files=[f'gin/{name}.gin' for name in ('serve', *files)],
    gin_bindings=[f'{name} = {value!r}' for name, value in macros.items()],
    search_paths=[str(_REPOSITORY)],
  )
  small_student.write(folder / 'run', model=run.model)


def _rows(servers) -> Iterator[str]:
  """The lines of the table."""
  yield (
    '| clients | server | requests/s | p50 ms | p99 ms | CPU ms per request |'
  )
  yield '|---:|---|---:|---:|---:|---:|'
  for clients in map(int, _CLIENTS.value):

    def measure(server, clients=clients) -> tuple[float, ...]:
      before = _cpu_seconds(server)
      num, *figures = asyncio.run(_measure(server.address(), clients))
      return *figures, 1000 * (_cpu_seconds(server) - before) / num

    ways = {n: functools.partial(measure, s) for n, s in servers.items()}
    found = worker.take_turns(ways, rounds=_REPEATS.value)
    for name, results in found.items():
      medians = map(statistics.median, zip(*results, strict=True))
      cells = ' | '.join(f'{median:,.1f}' for median in medians)
      yield f'| {clients} | {name} | {cells} |'


async def _measure(address: str, clients: int) -> tuple[float, ...]:
  """Requests, requests per second, p50 and p99 of latencies in milliseconds."""
  seconds = []
  async with aiohttp.ClientSession(
    connector=aiohttp.TCPConnector(limit=clients)
  ) as session:
    start = time.perf_counter()
    texts = itertools.cycle(_TEXTS)

    async def ask() -> None:
      while (
        (begin := time.perf_counter()) - start < _SECONDS.value
        or len(seconds) < 2  # percentiles need two
      ):
        body = {'input': next(texts)}
        async with session.post(f'{address}/v1/answers', json=body) as got:
          assert got.status == 200, await got.text()
          await got.read()
        seconds.append(time.perf_counter() - begin)

    await asyncio.gather(*(ask() for _ in range(clients)))
    whole = time.perf_counter() - start
  marks = statistics.quantiles(seconds, n=100, method='inclusive')
  return len(seconds), len(seconds) / whole, 1000 * marks[49], 1000 * marks[98]


def _cpu_seconds(server: serving_process.Process) -> float:
  """What the server has used, all of its threads together."""
  lines = server.get('/metrics')[1].decode().splitlines()
  (found,) = [x for x in lines if x.startswith('process_cpu_seconds_total ')]
  return float(found.split()[1])


def _memory(server: serving_process.Process) -> tuple[float, float]:
  """What the server has now, and had at most since its start; in MiB."""
  lines = pathlib.Path(f'/proc/{server.process.pid}/status').read_text()
  kib = dict(re.findall(r'^(VmRSS|VmHWM):\s+(\d+) kB$', lines, re.MULTILINE))
  return int(kib['VmRSS']) / 1024, int(kib['VmHWM']) / 1024


if __name__ == '__main__':
  command.run(main)
