# SPDX-License-Identifier: Apache-2.0
"""Wrong rows, completions and archives: one clear error, status 2."""

import gzip
import os
import zipfile

import pytest

from tests.claims import doors
from tests.claims.errors import refused, write

ROW = '{"id": "a", "first": "lamp", "second": "drum", "heavier": "first"}\n'
OTHER = '{"id": "b", "first": "rug", "second": "pen", "heavier": "second"}\n'
SAID = '{"id": "a", "text": "So the answer is first."}\n'

# name -> files of the source, further flags, what the error says.
CASES = {
  'missing_source': (None, (), ('nowhere does not exist', 'Check the path')),
  'no_rows': ({'readme': 'x'}, (), ("no rows of 'parcels'", 'train.jsonl')),
  'folder_for_file': ({'train.jsonl/x': '1'}, (), ('expected one of train',)),
  'not_json': (
    {'train.jsonl': f'{ROW}hello\n'},
    (),
    ("source/train.jsonl:2 reads 'hello'", 'expected JSON', 'drop the line'),
  ),
  'not_utf8': (
    {'train.jsonl': ROW.encode() + b'{"id": "\xff"}\n'},
    (),
    ('source/train.jsonl:2 has the byte 0xff at position 8', 'to UTF-8'),
  ),
  'utf16': ({'train.jsonl': ROW.encode('utf-16')}, (), ('byte 0xff', 'UTF-8')),
  'missing_field': (
    {'train.jsonl': f'{ROW}{{"id": "b", "first": "rug"}}\n'},
    (),
    ("train.jsonl:2 cannot be read as a row of 'parcels'", "field 'second'"),
  ),
  'label_outside_the_set': (
    {'train.jsonl': ROW + OTHER.replace('"second"}', '"third"}')},
    (),
    ("train.jsonl:2 has the label 'third'", "one of 'first', 'second'", 'Fix'),
  ),
  'label_of_another_kind': (
    {'train.jsonl': OTHER.replace('"second"}', '["first"]}')},
    (),
    ("train.jsonl:1 has the label ['first']", 'expected text', 'Fix'),
  ),
  'no_id': (
    {'train.jsonl': ROW.replace('"a"', 'null')},
    (),
    ('train.jsonl:1', 'the id is None, expected text or a number'),
  ),
  'same_id_twice': ({'train.jsonl': ROW * 2}, (), (':2 has the id', 'unique')),
  'nul_and_surrogate': (
    {'train.jsonl': ROW.replace('lamp', '\\u0000\\ud800')},
    (),
    ('train.jsonl:1 has the input', 'without NUL'),
  ),
  'empty_split': ({'train.jsonl': '\n'}, (), ('no row in train', 'at least')),
  'more_completions_than_rows': (
    {'train.jsonl': ROW, 'llm/train_CoT_0.json': '["x", "y", "z"]'},
    (),
    ('train_CoT_0.json: there are 3 completions for 1 rows', 'one per row'),
  ),
  'fewer_completions_than_rows': (
    {'train.jsonl': ROW + OTHER, 'llm/train_CoT_0.json': '["x"]'},
    (),
    ('train_CoT_0.json ends after 1', 'train.jsonl:2 is row 2', 'Add'),
  ),
  'a_gap_in_completions': (
    {'train.jsonl': ROW, 'llm/train_CoT_1.json': '["x"]'},
    (),
    ('numbered [1]', 'without a gap', 'Add the missing file'),
  ),
  'completions_of_other_rows': (
    {'train.jsonl': ROW, 'llm/train.jsonl': SAID.replace('"a"', '"zz"')},
    (),
    ('1 completions for ids that none of the 1 rows has', "'zz'", 'Check'),
  ),
  'completions_without_ids': (
    {'train.jsonl': ROW, 'llm/train.jsonl': '{"text": "x"}\n'},
    (),
    ('train.jsonl:1 is', 'strings "id" and "text"', 'drop the line'),
  ),
  'no_completions_file': (
    {'train.jsonl': ROW},
    ('--completions=none.jsonl',),
    ('none.jsonl do not exist', 'Check the path'),
  ),
  'odd_header': (
    {'train.jsonl': ROW, 'c.jsonl': '{"kind": "header", "settings": [1]}\n{'},
    ('--completions={source}/c.jsonl', '--keep=parsed'),
    ('no examples to write', '--keep'),
  ),
  'unknown_split': (
    {'train.jsonl': ROW},
    ('--splits=trian',),
    ('trian', 'train'),
  ),
  'split_without_rows': (
    {'train.jsonl': ROW},
    ('--splits=test',),
    ("no test rows of 'parcels'", 'expected test.jsonl'),
  ),
  'no_such_benchmark': (
    {'train.jsonl': ROW},
    ('--benchmark=parcel',),
    ("named 'parcel'", 'Did you mean parcels?'),
  ),
  'nan': ({'train.jsonl': ROW}, ('--fraction=nan',), ('nan', 'in (0, 1]')),
  'negative': (
    {'train.jsonl': ROW},
    ('--subset_seed=-1',),
    ('--subset_seed is -1', '0 or more'),
  ),
  'no_number': (
    {'train.jsonl': ROW},
    ('--fraction=half',),
    ('--fraction=half', 'could not convert', '--help'),
  ),
  'no_such_flag': (
    {'train.jsonl': ROW},
    ('--fractoin=1',),
    ("'fractoin'", 'Did you mean: fraction', '--help'),
  ),
  'no_flag_at_all': ({'train.jsonl': ROW}, ('cqa',), ("'cqa' is no flag",)),
  'no_such_choice': (
    {'train.jsonl': ROW},
    ('--keep=all_of_them',),
    ('--keep=all_of_them', 'all|parsed|correct', '--help'),
  ),
  'no_vocabulary': (
    {'train.jsonl': ROW},
    ('--vocabulary=none.model',),
    ("'none.model' is not a file", 'Give a SentencePiece'),
  ),
  'not_a_sentencepiece_file': (
    {'train.jsonl': ROW, 'v.model': 'hello'},
    ('--vocabulary={source}/v.model',),
    ('v.model cannot be used', 'no SentencePiece', '--train_vocab'),
  ),
  'empty_sentencepiece_file': (
    {'train.jsonl': ROW, 'v.model': ''},
    ('--vocabulary={source}/v.model',),
    ('v.model cannot be used', 'expected a SentencePiece', '--train_vocab'),
  ),
  'file_for_data_dir': (
    {'train.jsonl': ROW},
    ('--data_dir={source}/train.jsonl',),
    ("train.jsonl'", 'Give another'),
  ),
  'no_such_module': (
    {'train.jsonl': ROW},
    ('--module=no.such',),
    ('--module=no.such cannot be imported', 'PYTHONPATH'),
  ),
}


def prepare(tmp_path, *flags, source=None):
  """Calls prepare on parcels, whose rows are in `source`, else in tmp_path."""
  return doors.call(
    'dsbs_jax.prepare',
    '--benchmark=parcels',
    f'--source={source or tmp_path}',
    f'--data_dir={tmp_path / "data"}',
    '--vocabulary=bytes',
    *flags,
  )


@pytest.mark.parametrize('name', CASES)
def test_prepare_says_what_is_wrong(tmp_path, name):
  files, more, parts = CASES[name]
  source = tmp_path / ('nowhere' if files is None else 'source')
  write(source, files or {})
  ended = prepare(
    tmp_path, *(flag.format(source=source) for flag in more), source=source
  )
  refused(ended, *parts)
  assert not list(tmp_path.glob('data/dsbs_*'))


def test_a_byte_order_mark_is_read_over(tmp_path):
  write(tmp_path, {'train.jsonl': b'\xef\xbb\xbf' + ROW.encode()})
  ended = prepare(tmp_path)
  assert ended.status == 0, ended


def test_rows_of_another_folder_are_not_taken_for_these(tmp_path):
  write(tmp_path, {'train.jsonl': ROW, 'other/test.jsonl': OTHER})
  refused(
    prepare(tmp_path),
    'train rows of',
    'in train.jsonl and its test rows in other/test.jsonl, expected one folder',
    '--splits=train',
  )
  done = prepare(tmp_path, '--splits=train')
  assert done.status == 0, done
  assert f'parcels train: {tmp_path}/train.jsonl' in done.stderr


@pytest.mark.parametrize(
  'pipe, flags',
  [
    ('pipe', ('--source={place}/pipe',)),
    ('train.jsonl', ()),  # the split is not left out
    ('pipe', ('--completions={place}/pipe',)),
    ('said/train.jsonl', ('--completions={place}/said',)),
  ],
)
def test_a_pipe_for_a_file_is_refused(tmp_path, pipe, flags):
  files = {'train.jsonl': ROW, 'test.jsonl': OTHER, 'said/test.jsonl': SAID}
  write(tmp_path, {n: text for n, text in files.items() if n != pipe})
  os.mkfifo(tmp_path / pipe)
  ended = prepare(tmp_path, *(flag.format(place=tmp_path) for flag in flags))
  refused(ended, f'{tmp_path / pipe} is no regular file', 'Give a file')


@pytest.mark.parametrize('link', ['train.jsonl', 'said/train.jsonl'])
def test_a_link_to_nothing_leaves_no_split_out(tmp_path, link):
  files = {'train.jsonl': ROW, 'test.jsonl': OTHER, 'said/test.jsonl': SAID}
  write(tmp_path, {n: text for n, text in files.items() if n != link})
  (tmp_path / link).symlink_to(tmp_path / 'gone')
  ended = prepare(tmp_path, f'--completions={tmp_path / "said"}')
  refused(ended, str(tmp_path / link))
  assert not list((tmp_path / 'data').rglob('*'))


def _whole_zip(path):
  rows = [ROW.replace('"a"', f'"a{i}"') for i in range(100)]
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('train.jsonl', ''.join(rows))
  return path.read_bytes()


@pytest.mark.parametrize(
  'name, content, parts',
  [
    ('cut.zip', lambda data: data[:200], ('cut or damaged', 'Get it again')),
    ('empty.zip', lambda data: b'', ('cut or damaged',)),
    ('rows.gz', gzip.compress, ('neither a folder nor a zip',)),
    (
      'flipped.zip',
      lambda data: data.replace(b'lamp', b'lump', 1),
      ('train.jsonl is damaged', 'Get the archive again'),
    ),
  ],
)
def test_broken_archives_are_named(tmp_path, name, content, parts):
  path = tmp_path / name
  path.write_bytes(content(_whole_zip(tmp_path / 'whole.zip')))
  ended = prepare(tmp_path, source=path)
  refused(ended, name, *parts)


def test_debug_shows_the_traceback():
  with pytest.raises(ValueError, match='--benchmark is missing'):
    doors.call('dsbs_jax.prepare', '--debug')
  refused(doors.call('dsbs_jax.prepare'), '--benchmark is missing')
