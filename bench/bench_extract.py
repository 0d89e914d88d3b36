# SPDX-License-Identifier: Apache-2.0
"""python -m bench.bench_extract: the extraction client beside a bare loop.

Both ask a loopback server in a process of its own, which answers at once, for
the same chat prompts with the same concurrency, in turns. The bare loop is
what one would write first: the official client's typed method, a semaphore,
results in a list, nothing on disk. Ours keeps every answer on disk, counts
money, retries, and parses for the progress line.
"""

import asyncio
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import pathlib
import tempfile
import time

import numpy as np
import openai
from absl import flags

from bench import worker
from dsbs_jax.runtime import command
from rationales import extraction, prompt, worklist
from rationales.client import secret, server_config
from rationales.record import calls, completions_file, costs
from tests.rationales import loopback, sums

_ROWS = flags.DEFINE_integer('rows', 2000, 'Calls per measurement.')
_CONCURRENCY = flags.DEFINE_integer('concurrency', 32, 'Calls at once.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Measurements of each.')

_SAMPLING = calls.Sampling(
  model='teacher',
  endpoint=calls.CHAT,
  temperature=0.0,
  max_tokens=256,
  stop=(),
  extra={},
)


def main() -> None:
  """Prints one JSON object with medians over the repeats."""
  with loopback.running() as port, tempfile.TemporaryDirectory() as name:
    base_url = f'http://127.0.0.1:{port}/v1'
    folder = sums.write(pathlib.Path(name), _ROWS.value)
    work = _worklist(folder)
    files = (folder / f'{number}.jsonl' for number in itertools.count())
    measured = worker.take_turns(
      {
        name: functools.partial(_measure, run)
        for name, run in (
          ('bare_loop', lambda: _loop(work, base_url)),
          ('extract', lambda: _extract(work, base_url, next(files))),
        )
      },
      rounds=_REPEATS.value,
    )
  report = {
    'rows': _ROWS.value,
    'concurrency': _CONCURRENCY.value,
    'repeats': _REPEATS.value,
  }
  seconds = {}
  for name, found in measured.items():
    seconds[name], cpu = np.transpose(found)
    report[name] = {
      'completions_per_second': _ROWS.value / np.median(seconds[name]),
      'cpu_seconds_per_1000': 1000 * np.median(cpu) / _ROWS.value,
    }
  ratios = seconds['bare_loop'] / seconds['extract']
  report['rate_over_bare_loop'] = np.median(ratios)
  print(json.dumps(report, indent=2))


def _measure(run) -> tuple[float, float]:
  """Seconds on the clock and of the CPU."""
  cpu, start = time.process_time(), time.perf_counter()
  run()
  return time.perf_counter() - start, time.process_time() - cpu


def _worklist(folder: pathlib.Path) -> worklist.Worklist:
  # A prompt of the usual size: the exemplars of CQA around the tests' sums.
  shown = prompt.load(prompt.FOLDER / 'cqa.json')
  ours = dataclasses.replace(
    prompt.load(folder / 'sums_prompt.json'),
    instruction=shown.instruction,
    stop=(),
    exemplars=tuple(
      dataclasses.replace(exemplar, input={'q': exemplar.input['question']})
      for exemplar in shown.exemplars
    ),
  )
  return worklist.Worklist(
    sums.BENCHMARK, str(folder), 'train', ours, calls.CHAT
  )


def _loop(work: worklist.Worklist, base_url: str) -> None:
  async def run() -> list:
    client = openai.AsyncOpenAI(base_url=base_url, api_key='none')
    gate = asyncio.Semaphore(_CONCURRENCY.value)

    async def one(call: calls.Call):
      async with gate:
        answer = await client.chat.completions.create(**_SAMPLING.body(call))
        return answer.choices[0].message.content

    asked = work.first_pass(completions_file.Index(pathlib.Path()).freeze())
    texts = await asyncio.gather(*map(one, asked))
    await client.close()
    return texts

  assert all(asyncio.run(run()))


def _extract(
  work: worklist.Worklist, base_url: str, path: pathlib.Path
) -> None:
  job = extraction.Extraction(
    path=path,
    work=work,
    sampling=_SAMPLING,
    prompt_settings={},
    server=server_config.ServerConfig(
      'http', base_url, secret.Secret(''), concurrency=_CONCURRENCY.value
    ),
    prices=costs.Prices(1.0, 4.0, 1e6),
  )
  with contextlib.redirect_stderr(io.StringIO()):
    assert job.run() == 0


if __name__ == '__main__':
  command.run(main)
