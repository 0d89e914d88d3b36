# SPDX-License-Identifier: Apache-2.0
"""python -m tests.mutants: which mistakes in the code do the tests see?

Each mutant of table.toml is made in a copy of the tree, one at a time, and the
tests that are expected to see it run there, without reference data. A mutant
survives if all of them pass.
"""

import argparse
import collections
import concurrent.futures
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from tests.mutants import table

# No single test of those that run here takes as long.
_TIMEOUT_SECONDS = 300
_PASSED, _FAILED, _INTERRUPTED = 0, 1, 2  # statuses of pytest
_USERS_OWN = {'data', 'runs', 'build', 'dist'}
_SEEN_BY = re.compile(r'^(?:FAILED|ERROR) (\S+)', re.MULTILINE)
# In the stacks of a test that hangs: after them the process ends.
_HANGS = re.compile(r'/(tests/[\w/]+\.py)", line \d+, in (test_\w+)')


def main(
  arguments: Sequence[str] | None = None,
  *,
  root: pathlib.Path = table.REPOSITORY,
  path: pathlib.Path = table.TABLE,
) -> int:
  """Tries mutants and prints what became of them.

  Args:
    arguments: of the command line.
    root: the tree.
    path: the table.

  Returns:
    0 if every mutant was caught; 1 if one survived, cannot be made any more, or
    if the tests fail without any.
  """
  options = _options(arguments)
  mutants = [
    mutant
    for mutant in table.load(path)
    if not options.only
    or any(x in (mutant.room, mutant.file) for x in options.only)
  ]
  problems = list(filter(None, (mutant.problem(root) for mutant in mutants)))
  if problems or not mutants:
    _say(
      '\n'.join(
        [
          *problems,
          f'{path}: of {len(mutants)} mutants, {len(problems)} cannot be made',
        ]
      )
    )
    return 1
  with tempfile.TemporaryDirectory(prefix='mutants-') as scratch:
    trees: queue.Queue[pathlib.Path] = queue.Queue()
    for number in range(options.jobs):
      trees.put(_copy(root, pathlib.Path(scratch) / str(number)))

    def attempt(mutant: table.Mutant) -> bool:
      tree = trees.get()
      try:
        return _is_caught(mutant, tree, whole=options.whole)
      finally:
        trees.put(tree)

    if not options.trusting and not _pass_unchanged(mutants, trees.queue[0]):
      return 1
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
      caught = list(pool.map(attempt, mutants))
  return _summary(mutants, caught)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog='python -m tests.mutants')
  parser.add_argument(
    'only', nargs='*', help='rooms or files; all mutants without'
  )
  parser.add_argument(
    '--whole',
    action='store_true',
    help="where the tests named in the table pass, run the room's and"
    ' tests/claims',
  )
  parser.add_argument(
    '--trusting',
    action='store_true',
    help='do not run the tests without a mutant first',
  )
  parser.add_argument('--jobs', type=int, default=2, help='at the same time')
  return parser.parse_args(arguments)


def _copy(root: pathlib.Path, tree: pathlib.Path) -> pathlib.Path:
  """Copies code and tests, but neither caches nor what a user keeps there."""

  def left_out(folder: str, names: list[str]) -> set[str]:
    at_the_top = _USERS_OWN if pathlib.Path(folder) == root else set()
    return {n for n in names if n.startswith(('.', '__pyc')) or n in at_the_top}

  return shutil.copytree(root, tree, ignore=left_out)


def _pass_unchanged(
  mutants: Sequence[table.Mutant], tree: pathlib.Path
) -> bool:
  """Whether all named tests pass without a mutant: else they show nothing."""
  files = dict.fromkeys(file for mutant in mutants for file in mutant.tests)
  started = time.monotonic()
  status, seen_by = _test(list(files), tree)
  _say(
    f'{len(files)} files of tests, no mutant:'
    f' {"passed" if status == _PASSED else f"FAILED {seen_by}"}'
    f' ({time.monotonic() - started:.0f} s)'
  )
  return status == _PASSED


def _is_caught(
  mutant: table.Mutant, tree: pathlib.Path, *, whole: bool
) -> bool:
  """Whether a test fails with the mutant; leaves the tree as it was."""
  file = tree / mutant.file
  original = file.read_text(encoding='utf-8')
  rounds = [list(mutant.tests)]
  if whole:
    folder = f'tests/{mutant.room}'
    rounds.append([x for x in (folder, 'tests/claims') if (tree / x).is_dir()])
  started = time.monotonic()
  file.write_text(mutant.mutated(tree), encoding='utf-8')
  try:
    for tests in rounds:
      status, seen_by = _test(tests, tree)
      if status != _PASSED:
        break
  finally:
    file.write_text(original, encoding='utf-8')
  verdict = 'SURVIVED' if status == _PASSED else f'caught by {seen_by}'
  seconds = time.monotonic() - started
  _say(f'{mutant.file}: {verdict} ({seconds:.0f} s)\n  {mutant.mistake}')
  return status != _PASSED


def _test(tests: Sequence[str], tree: pathlib.Path) -> tuple[int, str]:
  """Runs files of tests in a tree; pytest's status, and what failed first.

  Raises:
    RuntimeError: there is no test to run, or pytest itself failed.
  """
  environment = os.environ | {
    'PYTHONPATH': str(tree),
    # Of two texts of one second and size, the cache would keep the first.
    'PYTHONDONTWRITEBYTECODE': '1',
    'DSBS_SHARED': str(tree / 'no reference data'),
    'JAX_PLATFORMS': 'cpu',
  }
  environment.setdefault(
    'JAX_COMPILATION_CACHE_DIR',
    str(table.REPOSITORY / '.cache' / 'compiled'),
  )
  options = ['-x', '-q', '-m', 'not long', '-p', 'no:cacheprovider']
  done = subprocess.run(
    [sys.executable, '-m', 'pytest', *options, *tests]
    + [f'--timeout={_TIMEOUT_SECONDS}'],
    cwd=tree,
    env=environment,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    errors='replace',
  )
  if done.returncode not in (_PASSED, _FAILED, _INTERRUPTED):
    raise RuntimeError(f'pytest {" ".join(tests)}:\n{done.stdout[-2000:]}')
  if found := _SEEN_BY.search(done.stdout):
    return done.returncode, found[1]
  hanging = _HANGS.findall(done.stdout)
  return done.returncode, '::'.join(hanging[-1]) if hanging else 'no test'


def _summary(mutants: Sequence[table.Mutant], caught: Sequence[bool]) -> int:
  total = collections.Counter(mutant.room for mutant in mutants)
  right = collections.Counter(
    m.room for m, hit in zip(mutants, caught, strict=True) if hit
  )
  _say(f'\n{"room":12} {"mutants":>8} {"caught":>8} {"survived":>8}')
  for room, number in total.items():
    hits = right[room]
    _say(f'{room:12} {number:8} {hits:8} {number - hits:8}')
  _say(
    f'{"all":12} {len(mutants):8} {sum(caught):8}'
    f' {len(mutants) - sum(caught):8}'
  )
  return 0 if all(caught) else 1


def _say(text: str) -> None:
  print(text, flush=True)
