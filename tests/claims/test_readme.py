# SPDX-License-Identifier: Apache-2.0
"""The list of files is the repository's; links and commands of docs exist."""

import ast
import pathlib
import re
import subprocess

import pytest

from dsbs_jax.runtime import command
from tests.claims import file_list

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def test_the_list_of_files_is_the_repository():
  try:
    expected = file_list.page()
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('not a git checkout')
  assert file_list.PAGE.read_text() == expected, (
    'run python -m tests.claims.file_list'
  )


def test_links_lead_somewhere():
  for document in [
    REPOSITORY / 'README.md',
    *(REPOSITORY / 'docs').glob('*.md'),
    *(REPOSITORY / 'tasks').glob('*.md'),
    *(REPOSITORY / 'rationales').glob('*.md'),
  ]:
    for target in re.findall(r'\]\(([^)#\s]+)', document.read_text()):
      if not target.startswith('http'):
        assert (document.parent / target).exists(), (document.name, target)


def test_doors_and_gin_files_in_commands_exist():
  for document in [
    REPOSITORY / 'README.md',
    *(REPOSITORY / 'docs').glob('*.md'),
  ]:
    text = document.read_text()
    for module in re.findall(
      r'python -m (dsbs_jax[\w.]*|rationales[\w.]*)', text
    ):
      assert (REPOSITORY / (module.replace('.', '/') + '.py')).exists(), module
    for file in re.findall(r'gin_file=(gin/[\w/.]+\.gin)', text):
      assert (REPOSITORY / file).exists(), (document.name, file)


def _flags(module: str) -> set[str]:
  """The flags that a command's source defines, those of gin included."""
  texts = [(REPOSITORY / (module.replace('.', '/') + '.py')).read_text()]
  for name in (
    'dsbs_jax/inference/student_flags',
    'dsbs_jax/runtime/configuration/gin_flags',
    'bench/workload',
  ):
    if any(name.rpartition('/')[2] in text for text in texts):
      texts.append((REPOSITORY / f'{name}.py').read_text())
  found = {'flagfile', 'debug', 'help'}
  for node in ast.walk(ast.parse('\n'.join(texts))):
    if isinstance(node, ast.Call) and node.args:
      name = ast.unparse(node.func).rpartition('.')[2]
      # prepare, show and sweep call DEFINE_string and its kin S, B, L, ...
      if name.startswith('DEFINE_') or name in tuple('SBLMNEF'):
        found |= {node.args[0].value, f'no{node.args[0].value}'}
      elif name == 'add_argument':
        found.add(node.args[0].value.removeprefix('--'))
  return found


def _commands(text: str) -> list[tuple[str, str]]:
  """(module, arguments) of each command of ours in blocks and in lines."""
  text = re.sub(r'\\\n\s*', ' ', text)
  found = re.findall(
    r'python -m ((?:dsbs_jax|rationales|bench)\.\w+)([^`\n]*)', text
  )
  verbs = '|'.join(command.VERBS)
  return found + [
    (command.VERBS[verb], arguments)
    for verb, arguments in re.findall(
      rf'(?<![\w/])dsbs ({verbs})\b([^`\n]*)', text
    )
  ]


@pytest.mark.parametrize(
  'document',
  sorted(
    path
    for folder in ('', 'docs', 'tasks', 'rationales', 'examples/parcels')
    for path in (REPOSITORY / folder).glob('*.md')
  ),
  ids=lambda path: str(path.relative_to(REPOSITORY)),
)
def test_flags_of_commands_in_docs_exist(document):
  text = document.read_text()
  gin = ''.join(p.read_text() for p in (REPOSITORY / 'gin').rglob('*.gin'))
  macros = set(re.findall(r'^([A-Z_\d]+) =', gin, re.MULTILINE))
  named = set(re.findall(r'--gin\.([A-Z_\d]+)=', text))
  assert named <= macros | {'NAME', 'X'}  # which stand for any macro
  for module, arguments in _commands(text):
    arguments = arguments.partition(' #')[0].partition('|')[0]
    given = re.findall(r'(?<!\S)--(?!gin\.)(\w+)', arguments)
    wrong = set(given) - _flags(module)
    assert not wrong, (module, wrong)


def test_tests_named_in_docs_exist():
  tests = ''.join(
    f'{path.stem} {path.read_text()}'
    for path in (REPOSITORY / 'tests').rglob('test_*.py')
  )
  for document in (REPOSITORY / 'docs').glob('*.md'):
    for name in re.findall(r'\btest_\w+\b(?!\*)', document.read_text()):
      assert re.search(rf'\b{name}\b', tests), (document.name, name)


@pytest.mark.parametrize(
  'document',
  [
    path
    for folder in ('.', 'docs', 'tasks', 'rationales')
    for path in sorted((REPOSITORY / folder).glob('*.md'))
  ],
  ids=lambda path: str(path.relative_to(REPOSITORY)),
)
def test_files_named_in_docs_exist(document):
  for name in re.findall(r'`([\w/]+/[\w.]+\.py)`', document.read_text()):
    assert (REPOSITORY / name).exists() or (
      REPOSITORY / 'dsbs_jax' / name
    ).exists(), name


@pytest.mark.parametrize(
  'document',
  [
    'README.md',
    *(f'docs/{p.name}' for p in (REPOSITORY / 'docs').glob('*.md')),
  ],
)
def test_prose_is_wrapped_at_100_columns(document):
  for number, line in enumerate(
    (REPOSITORY / document).read_text().splitlines(), start=1
  ):
    # Tables, pictures and headings cannot be wrapped, nor a single long word.
    if not line.startswith(('|', '!', '#')) and ' ' in line.strip():
      assert len(line) <= 100 or document == 'docs/files.md', (number, line)
