# SPDX-License-Identifier: Apache-2.0
"""Every mutant can be made; the runner tells caught ones from survivors."""

import pytest

from tests.mutants import runner, table

MUTANTS = table.load()


@pytest.mark.parametrize(
  'mutant', MUTANTS, ids=lambda m: f'{m.room}-{m.file.rpartition("/")[2]}'
)
def test_every_mutant_can_be_made(mutant):
  assert mutant.problem(table.REPOSITORY) is None
  code = ('rationales', 'tasks', f'dsbs_jax/{mutant.room}')
  assert mutant.file.startswith(tuple(f'{folder}/' for folder in code))


def test_every_room_has_mutants():
  folders = (table.REPOSITORY / 'dsbs_jax').glob('*/__init__.py')
  rooms = {'rationales', 'tasks', *(path.parent.name for path in folders)}
  assert {mutant.room for mutant in MUTANTS} == rooms
  assert len(MUTANTS) == 66


@pytest.fixture
def tree(tmp_path):
  """A project of one function, whose test looks at one of its two answers."""
  root = tmp_path / 'tree'
  (root / 'tests').mkdir(parents=True)
  (root / 'adult.py').write_text('def adult(age):\n  return age >= 18\n')
  (root / 'tests' / 'test_adult.py').write_text(
    'import adult\n\n\ndef test_adult():\n  assert adult.adult(18)\n'
  )
  return root


def _try(tree, capsys, *, old, new, options=('--trusting',)):
  entry = {
    'file': 'adult.py',
    'mistake': 'A border.',
    'old': old,
    'new': new,
    'tests': ['tests/test_adult.py'],
  }
  path = tree.parent / 'table.toml'
  lines = '\n'.join(f'{name} = {value!r}' for name, value in entry.items())
  path.write_text(f'[[door]]\n{lines}\n')
  status = runner.main(['--jobs=1', *options], root=tree, path=path)
  return status, capsys.readouterr().out


def test_a_mutant_that_a_test_sees_is_caught(tree, capsys):
  status, said = _try(tree, capsys, old='>= 18', new='> 18')
  assert status == 0
  assert 'adult.py: caught by tests/test_adult.py::test_adult' in said
  assert (tree / 'adult.py').read_text().endswith('age >= 18\n')


def test_a_survivor_ends_with_status_1(tree, capsys):
  status, said = _try(tree, capsys, old='>= 18', new='>= 17')
  assert status == 1 and 'adult.py: SURVIVED' in said


def test_tests_that_fail_without_a_mutant_show_nothing(tree, capsys):
  (tree / 'adult.py').write_text('def adult(age):\n  return age >= 21\n')
  status, said = _try(tree, capsys, old='>= 21', new='>= 22', options=())
  assert status == 1 and 'no mutant: FAILED' in said


@pytest.mark.parametrize(
  ('old', 'new', 'what'),
  [
    ('> 18', '>= 18', '0 times'),
    ('age', 'years', '2 times'),
    ('>= 18', '>= 18', 'nothing changes'),
    ('>= 18', '>= = 18', 'cannot be parsed'),
  ],
)
def test_a_table_that_no_longer_fits_ends_with_status_1(
  tree, capsys, old, new, what
):
  status, said = _try(tree, capsys, old=old, new=new)
  assert status == 1 and what in said
