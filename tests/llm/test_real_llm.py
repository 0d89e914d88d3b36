# SPDX-License-Identifier: Apache-2.0
"""Stage 1 and all that follows, with llama.cpp and SmolLM2 135M as the LLM."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from rationales.record import completions_file
from tests.llm import conftest
from tests.rationales import command

pytestmark = [pytest.mark.llm, pytest.mark.long]

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TASK = """
from dsbs_jax.data import benchmark, metrics, parsing, register

BENCHMARK = benchmark.Benchmark(
  name='tickets',
  splits={'train': 'train.jsonl', 'test': 'test.jsonl'},
  render=lambda row: row['text'],
  label=lambda row: row['team'],
  parse=parsing.after_marker('The answer is', label='([a-z]+)', until=('Q:',)),
  metric=metrics.exact_match,
  labels=('billing', 'technical', 'delivery'),
)
register.register(BENCHMARK)
"""
MESSAGES = {
  'billing': ('I was charged twice', 'The refund has not come'),
  'technical': ('The app crashes at the start', 'I cannot log in'),
  'delivery': ('My parcel has not come', 'The box came damaged'),
}
ENDINGS = ('again.', 'since Monday.', 'and I need help.', 'for a week now.')
RATIONALES = {
  'billing': 'This is about money.',
  'technical': 'This is about the app.',
  'delivery': 'This is about a parcel.',
}


def rows() -> list[dict]:
  return [
    {'text': f'{message} {ending}', 'team': team}
    for ending in ENDINGS
    for team, messages in MESSAGES.items()
    for message in messages
  ]


def write(path: pathlib.Path, found: list[dict]) -> None:
  path.write_text(''.join(json.dumps(row) + '\n' for row in found))


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A user's folder, which is the present one: rows, module and prompt."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv('OPENAI_API_KEY', raising=False)
  write(tmp_path / 'train.jsonl', rows())
  write(tmp_path / 'test.jsonl', rows()[:6])
  (tmp_path / 'tickets_task.py').write_text(TASK)
  done = extract('--write_prompt=mine.json')
  assert done.returncode == 0, done.stderr
  made = json.loads((tmp_path / 'mine.json').read_text())
  made['instruction'] = 'Say which team answers the message, and why.'
  for exemplar in made['exemplars']:
    exemplar['rationale'] = RATIONALES[exemplar['label']]
  (tmp_path / 'mine.json').write_text(json.dumps(made))
  return tmp_path


def start(module: str, *flags: str, **environment: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, '-m', module, *flags],
    env=os.environ
    | {'PYTHONPATH': f'{REPOSITORY}{os.pathsep}.', 'JAX_PLATFORMS': 'cpu'}
    | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(module: str, *flags: str, **environment) -> subprocess.CompletedProcess:
  process = start(module, *flags, **environment)
  out, err = process.communicate()
  return subprocess.CompletedProcess(flags, process.returncode, out, err)


EXTRACT = 'rationales.extract'
OWN = ('--benchmark=tickets', '--module=tickets_task', '--source=.')


def asking(llm, *flags: str) -> list[str]:
  return [
    *(*OWN, '--prompt=mine.json', f'--base_url={llm.host}/v1'),
    *('--model=teacher', '--max_tokens=24', '--out=c/train.jsonl', *flags),
  ]


def extract(*flags: str, **environment) -> subprocess.CompletedProcess:
  return run(EXTRACT, *OWN, *flags, **environment)


def wait_for_answers(path: pathlib.Path, count: int, process) -> None:
  """Waits until a file has so many answers."""
  while not path.exists() or len(command.answers(path)) < count:
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)


def test_from_rows_to_a_served_student(folder, make_llm):
  shown = extract('--prompt=mine.json', '--preview=3')
  assert shown.returncode == 0, shown.stderr
  assert 'Q: I was charged twice again.' in shown.stdout
  assert shown.stdout.count('=== train-') == 3

  # Before the server is there: refused, then 503 while it loads.
  llm, out = make_llm('smollm2'), folder / 'c' / 'train.jsonl'
  process = start(EXTRACT, *asking(llm))
  llm.start()
  wait_for_answers(out, 4, process)
  process.send_signal(signal.SIGKILL)
  process.wait()
  kept = out.read_bytes()

  # The server goes away in the middle and comes back.
  process = start(EXTRACT, *asking(llm))
  wait_for_answers(out, 10, process)
  llm.kill()
  time.sleep(3)  # no test of how long: that no row fails, however long
  llm.start()
  _, said = process.communicate()
  assert process.returncode == 0, said
  assert 'first answer, to train-' in said and "by 'teacher'" in said
  found = command.answers(out)
  assert out.read_bytes().startswith(kept.rpartition(b'\n')[0])
  assert sorted(line['id'] for line in found) == sorted(
    f'train-{index}' for index in range(len(rows()))
  )
  assert not command.lines(out, completions_file.FAILURE)
  llm.kill()

  student_answers(folder)


def student_answers(folder: pathlib.Path) -> None:
  """Prepares, trains a few steps, evaluates and serves."""
  own = ('--benchmark=tickets', '--module=tickets_task', '--source=.')
  done = run('dsbs_jax.prepare', *own, '--completions=c', '--data_dir=data')
  assert done.returncode == 0, done.stderr
  macros = {'MIXTURE_OR_TASK_NAME': 'tickets_gt_dsbs', 'VOCABULARY': 'bytes'}
  common = [
    f'--gin_search_paths={REPOSITORY}',
    '--gin_file=gin/models/nano.gin',
    '--gin_bindings=import tickets_task',
    *(f'--gin.{name}={value!r}' for name, value in macros.items()),
  ]
  data = f'--gin.DATA_DIR={str(folder / "data")!r}'
  place = str(folder / 'run')
  done = run(
    'dsbs_jax.train',
    '--gin_file=gin/train.gin',
    *(*common, data, f'--gin.MODEL_DIR={place!r}'),
    *('--gin.TRAIN_STEPS=5', '--gin.EVAL_PERIOD=5', '--gin.BATCH_SIZE=8'),
    '--gin.LEARNING_RATE=1e-3',
  )
  assert done.returncode == 0, done.stderr
  checkpoint = f'--gin.CHECKPOINT_PATH={place!r}'
  done = run(
    'dsbs_jax.eval', '--gin_file=gin/eval.gin', *common, data, checkpoint
  )
  assert done.returncode == 0, done.stderr
  assert 'accuracy' in done.stdout + done.stderr
  ask_student(folder, [*common, checkpoint])


def ask_student(folder: pathlib.Path, flags: list[str]) -> None:
  log = folder / 'serve.log'
  with log.open('w') as file:
    process = subprocess.Popen(
      [
        *(sys.executable, '-m', 'dsbs_jax.serve', '--gin_file=gin/serve.gin'),
        *(*flags, '--gin.PORT=0'),
        *('--gin.INPUT_LENGTHS=(64,)', '--gin.BATCH_SIZES=(1,)'),
      ],
      env=os.environ | {'PYTHONPATH': f'{REPOSITORY}{os.pathsep}.'},
      stderr=file,
    )
  try:
    while not (address := re.search(r'http://[\d.]+:\d+', log.read_text())):
      assert process.poll() is None, log.read_text()
      time.sleep(0.1)
    conftest.wait_until_healthy(f'{address[0]}/healthz', process, log)
    body = json.dumps({'input': rows()[0]['text']}).encode()
    request = urllib.request.Request(
      f'{address[0]}/v1/answers',
      body,
      {'Content-Type': 'application/json'},
    )
    with urllib.request.urlopen(request, timeout=300) as response:
      assert 'answers' in json.load(response)
  finally:
    process.kill()
    process.wait()


def test_what_llama_cpp_refuses_is_told_before_it_is_asked_for_all(
  folder, make_llm
):
  llm = make_llm('smollm2', '--context=512').start().wait()
  done = run(EXTRACT, *asking(llm, '--samples=4', '--temperature=0.7'))
  assert done.returncode == 2, done.stderr
  assert "Field 'n': Value must be between 1 <= value <= 2" in done.stderr
  assert '--samples_per_call=1' in done.stderr
  for wrong in ('/v2', '/v1/v1'):
    done = run(EXTRACT, *asking(llm, f'--base_url={llm.host}{wrong}'))
    assert done.returncode == 2, done.stderr
    assert f'--base_url={llm.host}/v1' in done.stderr
  assert not command.answers(folder / 'c' / 'train.jsonl')

  # A prompt longer than a slot's context fails, alone.
  long = {'text': 'word ' * 600, 'team': 'billing'}
  write(folder / 'train.jsonl', [long, *rows()[:3]])
  done = run(EXTRACT, *asking(llm))
  assert done.returncode == 1, done.stderr
  [failure] = command.lines(
    folder / 'c' / 'train.jsonl', completions_file.FAILURE
  )
  assert failure['id'] == 'train-0' and failure['status'] == 400
  assert 'exceeds the available context size (512 tokens)' in failure['error']
  assert len(command.answers(folder / 'c' / 'train.jsonl')) == 3

  # Two samples in one call are within its slots; any name of a model will do,
  # and the long row is no reason to doubt it.
  done = run(
    EXTRACT,
    *asking(llm, '--samples=2', '--temperature=0.7', '--out=c/two.jsonl'),
    '--model=anything',
  )
  assert "where 'anything' was asked for" in done.stderr, done.stderr


def test_a_key_that_is_not_set_is_named(folder, make_llm):
  llm = make_llm('smollm2', '--key=sk-of-the-tests').start().wait()
  flags = asking(llm, '--key_variable=LLM_KEY', '--limit=1')
  done = run(EXTRACT, *flags)
  assert done.returncode == 2, done.stderr
  assert '401: Invalid API Key; the environment variable LLM_KEY' in done.stderr
  done = run(EXTRACT, *flags, LLM_KEY='sk-of-the-tests')
  assert done.returncode == 0, done.stderr


def test_a_base_model_runs_on_and_is_told(folder, make_llm):
  """Gemma without instructions: no chat template, no end of an answer."""
  llm = make_llm('gemma', '--slots=1', '--context=1024').start().wait()
  done = run(EXTRACT, *asking(llm, '--limit=2'))
  assert done.returncode == 0, done.stderr
  found = command.answers(folder / 'c' / 'train.jsonl')
  assert [line['finish_reason'] for line in found] == ['length'] * 2
  assert '2 completions were cut at --max_tokens' in done.stderr
  # As plain text it continues the examples, and stops where the next begins.
  flags = ['--endpoint=completions', '--out=c/text.jsonl', '--max_tokens=40']
  done = run(EXTRACT, *asking(llm, '--limit=2', *flags))
  assert done.returncode == 0, done.stderr
  found = command.answers(folder / 'c' / 'text.jsonl')
  assert all('Q:' not in line['text'] for line in found), found
