# SPDX-License-Identifier: Apache-2.0
"""A path says which files hold which split, or what is unclear about it."""

import json
import shutil

import pytest

from dsbs_jax import contract
from dsbs_jax.data.source import row_files
from tests.data import row_tables


def touch(folder, *names):
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text('')
  return folder


def test_files_share_the_folder_above_them(tmp_path, monkeypatch):
  touch(tmp_path, 'a/rows.csv', 'b/dev.jsonl')
  one = row_files.locate(str(tmp_path / 'a/rows.csv'))
  assert one == (str(tmp_path / 'a'), {'train': ('rows.csv',)})
  monkeypatch.chdir(tmp_path / 'a')
  found = row_files.locate('rows.csv', validation='../b/dev.jsonl')
  splits = {'train': ('a/rows.csv',), 'validation': ('b/dev.jsonl',)}
  assert found == (str(tmp_path), splits)


@pytest.mark.parametrize(
  'names, splits',
  [
    (['train.csv', 'README.md'], {'train': ('train.csv',)}),
    (
      ['train.jsonl', 'dev.csv', 'test.parquet'],
      {
        'train': ('train.jsonl',),
        'validation': ('dev.csv',),
        'test': ('test.parquet',),
      },
    ),
    (
      [f'train-0000{i}-of-00002.parquet' for i in (1, 0)],
      {'train': tuple(f'train-0000{i}-of-00002.parquet' for i in (0, 1))},
    ),
  ],
)
def test_a_folder_s_files_are_told_by_their_names(tmp_path, names, splits):
  touch(tmp_path, *names)
  assert row_files.locate(str(tmp_path)) == (str(tmp_path), splits)


def test_a_zip_file_is_as_its_folder(tmp_path):
  touch(tmp_path / 'rows', 'train.csv', 'val.csv')
  path = shutil.make_archive(str(tmp_path / 'rows'), 'zip', tmp_path / 'rows')
  splits = {'train': ('train.csv',), 'validation': ('val.csv',)}
  assert row_files.locate(path) == (path, splits)
  with pytest.raises(
    contract.UserError, match='--test is given beside the zip'
  ):
    row_files.locate(path, test=str(tmp_path / 'rows/val.csv'))


def test_saved_datasets_are_read_by_their_state(tmp_path):
  row_tables.save_dataset(tmp_path / 'all/train', shards=2)
  row_tables.save_dataset(tmp_path / 'all/test', shards=1)
  names = json.dumps({'splits': ['train', 'test', 'extra']})
  (tmp_path / 'all/dataset_dict.json').write_text(names)
  both = tuple(f'data-0000{i}-of-00002.arrow' for i in (0, 1))
  one = 'data-00000-of-00001.arrow'
  assert row_files.locate(str(tmp_path / 'all'))[1] == {
    'train': tuple(f'train/{name}' for name in both),
    'test': (f'test/{one}',),
  }
  train = str(tmp_path / 'all/train')
  assert row_files.locate(train) == (train, {'train': both})
  rows = str(tmp_path / 'all/train/data-00000-of-00002.arrow')
  found = row_files.locate(rows, test=str(tmp_path / 'all/test'))
  assert found[1]['test'] == (f'test/{one}',)


@pytest.mark.parametrize(
  'names, options, message',
  [
    ([], {}, r'no rows of train \(empty\).*--rows=FILE'),
    (['rows.csv', 'x'], {}, r'no rows of train \(rows.csv, x\)'),
    (['train.csv', 'train.jsonl'], {}, 'has train.csv and train.jsonl for tr'),
    (['train.csv', 'val.csv', 'dev.csv'], {}, 'has dev.csv and val.csv for va'),
    (['train-00000-of-00002.csv'], {}, 'has 1 shards such as train-00000-of'),
    (
      [f'train-0000{i}-of-0000{n}.csv' for n in (2, 1) for i in range(n)],
      {},
      'has 3 shards .*remove what is of another set',
    ),
    (['train.csv', 'test.csv'], {'test': 'test.csv'}, '--test is given, but'),
    (['train.csv'], {'test': 'no.csv'}, '--test=.*no.csv does not exist'),
    (['train.csv', 'x.txt'], {'test': 'x.txt'}, 'x.txt is of no known kind'),
    (['train.csv', 'd/x'], {'test': 'd'}, 'd is a folder, expected a file'),
  ],
)
def test_what_is_unclear_is_an_error(tmp_path, names, options, message):
  touch(tmp_path, *names)
  given = {flag: str(tmp_path / name) for flag, name in options.items()}
  with pytest.raises(contract.UserError, match=message):
    row_files.locate(str(tmp_path), **given)


@pytest.mark.parametrize(
  'state',
  [
    [],
    {},
    {'_data_files': []},
    {'_data_files': [{'filename': '../../secret.arrow'}]},
    {'_data_files': [{'filename': 5}]},
    {'_data_files': [{'filename': 'a.arrow'}], '_indices_data_files': ['b']},
  ],
)
def test_a_strange_state_is_an_error(tmp_path, state):
  (tmp_path / 'state.json').write_text(json.dumps(state))
  with pytest.raises(contract.UserError, match='state.json is not what save_'):
    row_files.locate(str(tmp_path))
