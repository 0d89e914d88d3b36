# SPDX-License-Identifier: Apache-2.0
"""python -m bench.bench_extract: the extraction client beside a bare loop.

All ask a loopback server in a process of its own, which answers at once, for
the same chat prompts with the same concurrency, in turns. The bare loop is
what one would write first: the official client's typed method, a semaphore,
results in a list, nothing on disk. The plain loop is the fastest that the same
client allows: bytes of plain responses, not even decoded. Ours keeps every
answer on disk, counts money, retries, and parses for the progress line.
"""

import asyncio
import contextlib
import io
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import httpx2
import openai
from absl import flags

from dsbs_jax.runtime import command
from rationales import (
  backends,
  calls,
  completions_file,
  costs,
  extraction,
  prompt,
  secret,
  worklist,
)
from tests.rationales import sums

_ROWS = flags.DEFINE_integer('rows', 2000, 'Calls per measurement.')
_CONCURRENCY = flags.DEFINE_integer('concurrency', 32, 'Calls at once.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Measurements of each.')

_MAX_TOKENS = 256
_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
  """Prints one JSON object with medians over the repeats."""
  with _server() as base_url, tempfile.TemporaryDirectory() as name:
    folder = sums.write(pathlib.Path(name), _ROWS.value)
    work = _worklist(folder)
    bare, plain, ours = [], [], []
    for number in range(_REPEATS.value + 1):
      bare.append(_measure(lambda: _loop(work, base_url, _typed)))
      plain.append(_measure(lambda: _loop(work, base_url, _plain)))
      path = folder / f'{number}.jsonl'
      ours.append(_measure(lambda path=path: _extract(work, base_url, path)))
  # The first of each warms up caches and connections of the machine.
  report = {
    'rows': _ROWS.value,
    'concurrency': _CONCURRENCY.value,
    'repeats': _REPEATS.value,
    'bare_loop': _summary(bare[1:]),
    'plain_loop': _summary(plain[1:]),
    'extract': _summary(ours[1:]),
    'rate_over_bare_loop': _ratio(bare[1:], ours[1:]),
    'rate_over_plain_loop': _ratio(plain[1:], ours[1:]),
  }
  print(json.dumps(report, indent=2))


def _measure(run) -> dict[str, float]:
  before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
  run()
  seconds = time.perf_counter() - start
  after = resource.getrusage(resource.RUSAGE_SELF)
  cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  return {'seconds': seconds, 'cpu': cpu}


def _ratio(loop: list[dict[str, float]], ours: list[dict[str, float]]) -> float:
  pairs = zip(loop, ours, strict=True)
  ratios = [theirs['seconds'] / our['seconds'] for theirs, our in pairs]
  return round(statistics.median(ratios), 3)


def _summary(measured: list[dict[str, float]]) -> dict[str, float]:
  seconds = statistics.median(m['seconds'] for m in measured)
  cpu = statistics.median(m['cpu'] for m in measured)
  return {
    'completions_per_second': round(_ROWS.value / seconds, 1),
    'cpu_seconds_per_1000': round(1000 * cpu / _ROWS.value, 3),
  }


def _worklist(folder: pathlib.Path) -> worklist.Worklist:
  # A prompt of the usual size: the exemplars of CQA around the tests' sums.
  shown = prompt.load(prompt.FOLDER / 'cqa.json')
  ours = prompt.load(folder / 'sums_prompt.json')
  exemplars = tuple(
    prompt.Exemplar(
      group=exemplar.group,
      input={'q': exemplar.input['question']},
      rationale=exemplar.rationale,
      answer=exemplar.answer,
      label=exemplar.label,
    )
    for exemplar in shown.exemplars
  )
  ours = prompt.Prompt(
    instruction=shown.instruction,
    question=ours.question,
    hint=ours.hint,
    cue=ours.cue,
    answer=ours.answer,
    stop=(),
    exemplars=exemplars,
  )
  return worklist.Worklist(
    sums.BENCHMARK, str(folder), 'train', ours, calls.CHAT
  )


def _sampling() -> calls.Sampling:
  return calls.Sampling(
    model='teacher',
    endpoint=calls.CHAT,
    temperature=0.0,
    max_tokens=_MAX_TOKENS,
    stop=(),
    extra={},
  )


async def _typed(client: openai.AsyncOpenAI, body) -> str:
  answer = await client.chat.completions.create(**body)
  return answer.choices[0].message.content


async def _plain(client: openai.AsyncOpenAI, body) -> bytes:
  answer = await client.post(
    '/chat/completions', body=body, cast_to=httpx2.Response
  )
  return answer.content


def _loop(work: worklist.Worklist, base_url: str, ask) -> None:
  sampling = _sampling()

  async def run() -> list:
    client = openai.AsyncOpenAI(base_url=base_url, api_key='none')
    gate = asyncio.Semaphore(_CONCURRENCY.value)

    async def one(call: calls.Call):
      async with gate:
        return await ask(client, sampling.body(call))

    asked = work.first_pass(completions_file.Index().freeze())
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
    sampling=_sampling(),
    prompt_settings={},
    server=backends.ServerConfig(
      'http', base_url, secret.Secret(''), concurrency=_CONCURRENCY.value
    ),
    prices=costs.Prices(1.0, 4.0, 1e6),
  )
  with contextlib.redirect_stderr(io.StringIO()):
    assert job.run() == 0


@contextlib.contextmanager
def _server():
  process = subprocess.Popen(
    [sys.executable, '-m', 'tests.rationales.loopback'],
    cwd=_REPOSITORY,
    env=os.environ | {'PYTHONPATH': str(_REPOSITORY)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    yield f'http://127.0.0.1:{int(process.stdout.readline())}/v1'
  finally:
    process.stdin.close()
    process.wait()


if __name__ == '__main__':
  command.run(main)
