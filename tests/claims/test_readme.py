# SPDX-License-Identifier: Apache-2.0
"""The README's tree is the repository's, its links and flags exist."""

import pathlib
import re
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
README = (REPOSITORY / 'README.md').read_text()
# Folders whose files the tree lists one by one.
LISTED = ('rationales', 'tasks', 'dsbs_jax', 'gin', 'docs', 'bench', 'examples')
_DATA = ('.json', '.jsonl', '.svg', '.model')


def _tracked() -> set[str]:
  done = subprocess.run(
    ['git', 'ls-files', '--cached', '--others', '--exclude-standard'],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    pytest.skip('not a git checkout')
  return {name for name in done.stdout.split('\n') if name}


def _tree() -> set[str]:
  """The paths that the README's tree names, by their indentation."""
  block = README.split('## The tree')[1].split('```')[1]
  paths, folders = set(), {}
  for line in block.splitlines()[1:]:
    if not line.strip():
      continue
    depth = (len(line) - len(line.lstrip())) // 2
    names = re.split(r'\s{2,}', line.strip())[0].split()
    parent = folders.get(depth - 1, '')
    for name in names:
      if name.endswith('/'):
        folders[depth] = parent + name
      else:
        paths.add(parent + name)
  return paths


def test_the_tree_names_every_file_and_no_other():
  expected = {
    name
    for name in _tracked()
    if name.split('/')[0] in LISTED
    and not name.endswith(('__init__.py', *_DATA))
  }
  tree = {name for name in _tree() if name.split('/')[0] in LISTED}
  assert tree == expected


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
