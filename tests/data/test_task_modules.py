# SPDX-License-Identifier: Apache-2.0
"""A user's module is found by path or name, and no folder of theirs is ours."""

import pathlib
import subprocess
import sys
import textwrap

import pytest

from dsbs_jax.data import benchmark, register, task_modules

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MODULE = """
from dsbs_jax.data import benchmark, metrics, parsing, register

register.register(
  benchmark.Benchmark(
    name='{name}',
    splits={{'train': 'train.jsonl'}},
    render=lambda row: row['q'],
    label=lambda row: row['a'],
    parse=parsing.after_marker('The answer is', label=r'(\\S+)\\.'),
    metric=metrics.exact_match,
  )
)
"""


def _write(path, name):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(MODULE.format(name=name))
  return path


def _python(folder, code, *, path=REPOSITORY):
  """What a Python prints that runs in a folder, as `dsbs` does."""
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)],
    capture_output=True,
    text=True,
    cwd=folder,
    env={'PYTHONPATH': str(path)},
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.split()


def test_a_path_and_a_name_are_the_same_module(tmp_path, monkeypatch):
  file = _write(tmp_path / 'below' / 'named_twice.py', 'named_twice')
  monkeypatch.setattr(sys, 'path', [*sys.path])
  monkeypatch.chdir(tmp_path)
  for module in ('below/named_twice.py', str(file), 'named_twice'):
    register.load_module(module)
    assert register.benchmark('named_twice', module=module)
  monkeypatch.chdir(tmp_path / 'below')
  for module in ('named_twice.py', '../below/named_twice.py'):
    register.load_module(module)
  assert sys.modules.pop('named_twice').__file__ == str(file)


def test_two_files_of_one_name_are_two_modules(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'path', [*sys.path])
  # json.py lies where a module of Python's has the name.
  for folder, stem in (('one', 'twin'), ('two', 'twin'), ('three', 'json')):
    _write(tmp_path / folder / f'{stem}.py', f'of_{folder}')
    register.load_module(str(tmp_path / folder / f'{stem}.py'))
    assert register.benchmark(f'of_{folder}')
  assert sys.modules.pop('twin').__file__ == str(tmp_path / 'one' / 'twin.py')


def test_what_lies_beside_a_module_can_be_imported(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'path', [*sys.path])
  (tmp_path / 'name_of_it.py').write_text("NAME = 'with_neighbour'\n")
  file = _write(tmp_path / 'with_neighbour.py', 'x')
  text = file.read_text().replace("name='x'", 'name=name_of_it.NAME')
  file.write_text(f'import name_of_it\n{text}')
  assert register.benchmark('with_neighbour', module=str(file))


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('x = 1\ny = x +\n', 'line 2): SyntaxError: invalid syntax'),
    ('\nprint(undefined)\n', "line 2): NameError: name 'undefined' is not"),
    (
      'import no_such_package\n',
      "ModuleNotFoundError: No module named 'no_such",
    ),
    (MODULE.format(name='Bad Name'), "line 5): Benchmark.name is 'Bad Name'"),
  ],
)
def test_an_error_in_it_names_file_and_line(tmp_path, text, expected):
  file = tmp_path / 'wrong.py'
  file.write_text(text)
  for _ in range(2):
    with pytest.raises(ValueError) as raised:
      register.load_module(str(file))
    assert str(file) in str(raised.value) and expected in str(raised.value)


def test_a_module_that_is_not_there_says_where_it_was_looked_for(tmp_path):
  with pytest.raises(ValueError, match=f'{tmp_path}/no.py is no file'):
    register.load_module(f'{tmp_path}/no.py')
  with pytest.raises(ValueError, match='there is no no/such.py.*PYTHONPATH'):
    register.load_module('no.such')


def test_a_file_of_ours_is_the_module_that_it_is():
  register.load_module(str(REPOSITORY / 'tasks' / 'cqa.py'))
  register.load_module('tasks.cqa')
  assert register.benchmark('cqa') is sys.modules['tasks.cqa'].BENCHMARK


@pytest.mark.parametrize('kind', ['package', 'namespace', 'module'])
@pytest.mark.parametrize('ours_first', [True, False])
def test_a_folder_tasks_of_the_users_is_theirs(tmp_path, kind, ours_first):
  if kind == 'module':
    _write(tmp_path / 'tasks.py', 'theirs')
    named = 'tasks', 'tasks.py'
  else:
    _write(tmp_path / 'tasks' / 'mine.py', 'theirs')
    named = 'tasks.mine', 'tasks/mine.py'
  if kind == 'package':
    (tmp_path / 'tasks' / '__init__.py').touch()
  order = ['cqa', 'theirs'] if ours_first else ['theirs', 'cqa']
  for module in named:
    code = f"""
      from dsbs_jax.data import register
      modules = {{'theirs': {module!r}, 'cqa': None}}
      for name in {order}:
        print(register.benchmark(name, module=modules[name]).name)
      # asdiv imports another module of ours.
      print(register.benchmark('svamp_asdiv').name)
      register.load_module({module!r})
      """
    assert _python(tmp_path, code) == [*order, 'svamp_asdiv']


def test_ours_is_imported_by_its_name_where_nobody_else_has_it(tmp_path):
  code = """
    from dsbs_jax.data import register
    first = register.benchmark('cqa')
    import tasks.cqa
    print(tasks.cqa.BENCHMARK is first)
    """
  assert _python(tmp_path, code) == ['True']


def test_a_folder_rationales_of_the_users_does_not_hide_extract(tmp_path):
  (tmp_path / 'rationales').mkdir()
  (tmp_path / 'rationales' / '__init__.py').write_text('raise SystemExit(9)')
  code = f"""
    import sys
    sys.path[0] = {str(REPOSITORY)!r}
    from dsbs_jax.runtime import command
    sys.argv = ['dsbs', 'extract', '--help']
    command.front()
    """
  assert 'rationales.extract' in _python(tmp_path, code)


def test_only_paths_are_made_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert task_modules.absolute('mine.py') == str(tmp_path / 'mine.py')
  assert task_modules.absolute('../x/mine.py').endswith('/x/mine.py')
  assert task_modules.absolute('tasks.mine') == 'tasks.mine'


def test_names_of_ours_are_all_found():
  task_modules.import_ours()
  assert {'cqa', 'esnli', 'anli1', 'svamp'} <= set(benchmark.names())
