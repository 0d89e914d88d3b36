# SPDX-License-Identifier: Apache-2.0
"""The README's commands, run as they are written, one after another."""

import json
import os
import pathlib
import re
import subprocess
import sys

from rationales import prompt
from tests.rationales import command

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
NUM_ROWS = 40
LETTERS = 'abcde'


def _commands() -> list[str]:
  text = (REPOSITORY / 'rationales' / 'README.md').read_text()
  blocks = re.findall(r'```sh\n(.*?)```', text, re.DOTALL)
  lines = [line.strip() for block in blocks for line in block.splitlines()]
  found = [line for line in lines if line]
  assert found[0].startswith('export LLM=') and len(found) == 5
  return found[1:]


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


def test_the_commands_run_as_written(server, tmp_path):
  server.teach(_write_rows(tmp_path / 'datasets'))
  # A shell in which `python` is this one, in the folder of the data.
  environment = os.environ | {
    'LLM': server.base_url,
    'OPENAI_API_KEY': 'none',
    'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}',
    'PYTHONPATH': str(REPOSITORY),
  }
  outputs = []
  for line in _commands():
    done = subprocess.run(
      line,
      shell=True,
      cwd=tmp_path,
      env=environment,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    outputs.append(done.stdout + done.stderr)
  bill, run, second, prepared = outputs
  assert f'to do    {NUM_ROWS} calls' in bill and 'money    about' in bill
  assert f'{NUM_ROWS} of {NUM_ROWS}' in run and 'right 75.0%' in run
  assert '10 of 10' in second and 'right 100.0%' in second
  assert server.stats()['requests'] == NUM_ROWS + 10
  assert len(command.answers(tmp_path / 'completions/train.jsonl')) == NUM_ROWS
  assert (tmp_path / 'data').is_dir(), prepared
  assert 'rationalized' in prepared, prepared
