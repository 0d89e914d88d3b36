# SPDX-License-Identifier: Apache-2.0
"""The README's commands, run as they are written, one after another."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

from rationales import prompt
from tests.claims import doors
from tests.rationales import command

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
NUM_ROWS = 40
LETTERS = 'abcde'


def _commands() -> list[str]:
  text = (REPOSITORY / 'rationales' / 'README.md').read_text()
  blocks = re.findall(r'```sh\n(.*?)```', text, re.DOTALL)
  export, *found = [' '.join(block.split()) for block in blocks]
  assert export.startswith('export LLM=') and len(found) == 4
  return [line.replace('\\ ', '') for line in found]


def _row(number: int) -> dict:
  choices = [f'box {number + place}' for place in range(5)]
  return {
    'id': f'row{number}',
    'question': f'Which box has the number {number + 2}?',
    'choices': choices,
    'answer': choices[2],
  }


def _answer(row: dict, letter: str) -> str:
  choice = row['choices'][LETTERS.index(letter)]
  return f'I count from one. So the answer is ({letter}) {choice}.'


def _write_rows(folder: pathlib.Path) -> dict[str, str]:
  """Writes CQA-like rows; what the teacher says to each, and with a hint."""
  shown = prompt.load(prompt.FOLDER / 'cqa.json')
  rows = [_row(number) for number in range(NUM_ROWS)]
  answers = {}
  for number, row in enumerate(rows):
    letter = 'd' if number % 4 == 0 else 'c'
    for hint, said in [(None, letter), (row['answer'], 'c')]:
      question = prompt.chat_messages(shown, row, hint=hint)[-1]['content']
      answers[question] = _answer(row, said)
  folder.mkdir()
  for split in ('train', 'test'):
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (folder / f'cqa_{split}.json').write_text(text)
  return answers


def test_the_commands_run_as_written(server, spawner, tmp_path, monkeypatch):
  server.teach(_write_rows(tmp_path / 'datasets'))
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('LLM', server.base_url)
  dry_run, run, second, prepare = _commands()
  # The first by a shell in which `python` is this one.
  path = f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
  shown = subprocess.run(
    dry_run,
    shell=True,
    env=os.environ | {'PATH': path, 'PYTHONPATH': str(REPOSITORY)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert f'to do    {NUM_ROWS} calls' in shown.stdout
  assert 'money    about' in shown.stdout
  for line, parts in [
    (run, [f'{NUM_ROWS} of {NUM_ROWS}', 'correct 75.0%']),
    (second, ['10 of 10', 'correct 100.0%']),
  ]:
    python, module, name, *flags = shlex.split(os.path.expandvars(line))
    assert (python, module, name) == ('python', '-m', 'rationales.extract')
    done = command.start(spawner, flags, tmp_path / 'log.txt').wait()
    assert done.status == 0, done.output
    assert all(part in done.output for part in parts), done.output
  assert server.stats()['answered'] == NUM_ROWS + 10
  assert len(command.answers(tmp_path / 'completions/train.jsonl')) == NUM_ROWS
  python, module, name, *flags = shlex.split(prepare)
  done = doors.call(name, *flags)
  assert done.status == 0, done
  assert 'rationalized' in done.stdout + done.stderr, done
  assert (tmp_path / 'data').is_dir()
