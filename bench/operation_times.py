# SPDX-License-Identifier: Apache-2.0
"""Where a program's time goes on a device, by a trace of it."""

import collections
import glob
import re
import tempfile
from collections.abc import Callable

import jax


def profile(run: Callable[[int], object], times: int) -> dict[str, object]:
  """Where a run's time goes, by a trace of some: milliseconds per run."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for number in range(times):
        outputs = run(number)
      jax.block_until_ready(outputs)
    (path,) = glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)
    totals, kinds = read(path)

  def milliseconds(counter, most=None):
    return {
      name: nanoseconds / 1e6 / times
      for name, nanoseconds in counter.most_common(most)
    }

  return {
    'operations_milliseconds': sum(totals.values()) / 1e6 / times,
    'kinds_milliseconds': milliseconds(kinds),
    'top_ten_milliseconds': milliseconds(totals, 10),
  }


def read(
  path: str,
) -> tuple[collections.Counter[str], collections.Counter[str]]:
  """Nanoseconds by operation, and by kind of operation.

  On a GPU by kernels of one kind, a name without its number: a step runs
  thousands, and those in a CUDA graph do not say which operation they are. On a
  TPU an event is named by its whole instruction, `%fusion.1 = ...`; a loop's
  contains those of its body, and is left out.
  """
  planes = list(jax.profiler.ProfileData.from_file(path).planes)
  planes = [p for p in planes if p.name.startswith('/device:')] or planes
  times: collections.Counter[str] = collections.Counter()
  kinds: collections.Counter[str] = collections.Counter()
  for plane in planes:
    is_tpu = ':TPU:' in plane.name
    for line in plane.lines:
      if is_tpu and line.name != 'XLA Ops':
        continue
      for event in line.events:
        named = dict(event.stats)
        if is_tpu:
          name = event.name.split(' = ')[0].removeprefix('%')
          if name.startswith(('while', 'conditional', 'call')):
            continue
        elif 'hlo_op' not in named:
          continue
        elif 'GPU' in plane.name:
          name = re.sub(r'[._]\d+$', '', event.name)
        else:
          name = str(named['hlo_op'])
        times[name] += event.duration_ns
        kinds[_kind_of(name)] += event.duration_ns
  return times, kinds


def _kind_of(operation: str) -> str:
  """What an operation or kernel does, by its name."""
  for kind, pattern in (
    ('attention', 'cudnn|fmha|sdpa|flash'),
    ('products', 'gemm|nvjet|cutlass|dot|matmul|convolution'),
    ('reductions', 'reduce|softmax'),
    ('gathers and scatters', 'gather|scatter'),
    ('copies', 'copy|memcpy|memset|concatenate|transpose|pad|slice|broadcast'),
  ):
    if re.search(pattern, operation, re.IGNORECASE):
      return kind
  return 'elementwise'
