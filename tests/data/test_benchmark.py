# SPDX-License-Identifier: Apache-2.0
"""A benchmark checks itself, and is found by its name."""

import dataclasses

import pytest

from dsbs_jax.data import benchmark, register
from tests.data import toy


@pytest.fixture(autouse=True)
def registry(monkeypatch):
  """A copy, so that nothing added here stays."""
  monkeypatch.setattr(benchmark, '_REGISTRY', dict(benchmark._REGISTRY))


@pytest.mark.parametrize(
  'change, message',
  [
    ({'name': 'My-Task'}, 'lower-case letters'),
    ({'name': ''}, 'lower-case letters'),
    ({'splits': {'dev': 'dev.jsonl'}}, "has splits .'dev'., expected"),
    ({'splits': {}}, 'expected one or more of train, validation, test'),
    (
      {'splits': {'validation': 'v'}, 'derive_validation': True},
      'Drop one of the two',
    ),
  ],
)
def test_a_wrong_field_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(toy.BENCHMARK, **change)


def test_splits_have_one_order_and_include_the_derived_one():
  swapped = dataclasses.replace(
    toy.BENCHMARK,
    splits={'test': 'b', 'train': 'a'},
    derive_validation=True,
  )
  assert swapped.split_names() == ('train', 'validation', 'test')
  assert toy.BENCHMARK.split_names() == ('train', 'test')


def test_ids_are_the_rows_own_or_their_position():
  row = {'id': 17}
  assert toy.BENCHMARK.row_id(row, split='test', index=3) == '17'
  plain = dataclasses.replace(toy.BENCHMARK, example_id=None)
  assert plain.row_id(row, split='test', index=3) == 'test-3'


def test_a_name_is_taken_once():
  benchmark.add(toy.BENCHMARK)
  benchmark.add(toy.BENCHMARK)
  assert benchmark.find('toy') is toy.BENCHMARK
  with pytest.raises(ValueError, match="'toy' exists already"):
    benchmark.add(dataclasses.replace(toy.BENCHMARK, labels=()))


def test_a_name_finds_its_task_module():
  found = benchmark.find('svamp_asdiv')
  assert found.split_names() == ('train', 'validation', 'test')
  assert {'asdiv', 'svamp', 'svamp_asdiv'} <= set(benchmark.names())


def test_an_unknown_name_gets_the_nearest_ones():
  for name in ('cqq', 'CQA'):
    with pytest.raises(ValueError, match=f'named {name!r}.*cqa'):
      benchmark.find(name)
  with pytest.raises(ValueError, match='Did you mean .*svamp'):
    benchmark.find('swamp')


def test_a_module_of_ones_own_is_imported_by_its_name(tmp_path, monkeypatch):
  (tmp_path / 'own_rows.py').write_text(
    'import dataclasses\n'
    'from dsbs_jax.data import benchmark\n'
    'from tests.data import toy\n'
    "benchmark.add(dataclasses.replace(toy.BENCHMARK, name='own'))\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  assert register.benchmark('own', module='own_rows').name == 'own'


def test_a_teachers_own_parser_is_preferred():
  own = dataclasses.replace(toy.BENCHMARK, parsers={'other': str.upper})
  assert own.parser('other') is str.upper
  assert own.parser('palm') is toy.BENCHMARK.parse
