# SPDX-License-Identifier: Apache-2.0
"""docs/tutorial.md, followed to the letter with llama.cpp and SmolLM2.

Every `sh` block is run in one folder, as a user would type it, and must print
what the `text` block after it shows: line by line, where a line `...` stands
for any lines, `...` in a line for any text, and a number for any number. A block with a file's name is that
file; one with `background` goes on while later ones run.
"""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TUTORIAL = REPOSITORY / 'docs' / 'tutorial.md'
_BLOCK = re.compile(r'^```(\w+)([^\n]*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r'\d[\d,]*(?:\.\d+)?')
# Nothing takes this long; a command that is waited for longer hangs.
_HANG_SECONDS = 1800


@dataclasses.dataclass
class Block:
  """A block of the page: what it is, and its lines."""

  language: str
  info: str
  content: str
  shown: str | None = None


def blocks(page: str) -> list[Block]:
  """The blocks, with what is shown after a command beside it."""
  found = []
  for language, info, content in _BLOCK.findall(page):
    if language == 'text' and found and found[-1].language == 'sh':
      found[-1].shown = content
    else:
      found.append(Block(language, info.strip(), content))
  return found


def pattern(shown: str) -> re.Pattern[str]:
  """What matches an output like the one that is shown."""
  parts = []
  for line in shown.splitlines():
    if line.strip() == '...':
      parts.append(r'(?:[^\n]*\n)*?')
      continue
    words = [
      _NUMBER.pattern.join(map(re.escape, _NUMBER.split(part)))
      for part in line.rstrip().split('...')
    ]
    parts.append(r'[^\n]*'.join(words) + r' *\n?')
  return re.compile(''.join(parts) + r'\Z')


def test_a_number_stands_for_any_and_dots_for_lines():
  like = pattern('step 1/400  loss...\n...\ndone: 400 steps\n')
  assert like.match('step 50/400  loss 5\na\nb\ndone: 1,000 steps\n')
  assert not like.match('step 50/400  loss 5\na\nfailed: 400 steps\n')
  assert not like.match('step 50/400  gain 5\ndone: 400 steps\n')


@pytest.mark.llm
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_tutorial_does_what_it_says(make_llm, tmp_path):
  llm = make_llm().start().wait()
  environment = os.environ | {
    'PATH': f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}',
    'PYTHONPATH': str(REPOSITORY),
    'JAX_PLATFORMS': 'cpu',
  }
  environment.pop('OPENAI_API_KEY', None)
  folder = tmp_path / 'tickets'
  folder.mkdir()
  background = []
  try:
    for block in blocks(TUTORIAL.read_text()):
      if block.language == 'sh':
        command = block.content.replace('~/dsbs_jax', str(REPOSITORY))
        command = command.replace('localhost:8080', f'127.0.0.1:{llm.port}')
        _run(command, block, folder, environment, background)
      elif block.info:
        (folder / block.info).write_text(block.content)
  finally:
    for process in background:
      process.kill()
      process.wait()


def _run(command, block, folder, environment, background):
  log = folder / 'output.log'
  started = time.monotonic()
  with log.open('w') as output:
    process = subprocess.Popen(
      ['bash', '-e', '-c', command],
      cwd=folder,
      env=environment,
      stdout=output,
      stderr=subprocess.STDOUT,
      stdin=subprocess.DEVNULL,
    )
  like = pattern(block.shown or '...')
  if block.info == 'background':
    background.append(process)
    while not like.match(log.read_text()):
      assert process.poll() is None, log.read_text()
      assert time.monotonic() - started < _HANG_SECONDS, log.read_text()
      time.sleep(0.2)
    log.rename(folder / f'background{len(background)}.log')
  else:
    assert process.wait(_HANG_SECONDS) == 0, (command, log.read_text())
    assert like.match(log.read_text()), (
      f'{command}\nprinted\n{log.read_text()}\nnot\n{block.shown}'
    )
  print(f'{time.monotonic() - started:.0f} s: {command.splitlines()[0]}')
