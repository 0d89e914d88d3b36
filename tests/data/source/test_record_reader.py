# SPDX-License-Identifier: Apache-2.0
"""Every kind of file gives the same rows, or one error with its place."""

import io
import json
import struct
import zipfile

import hypothesis
import hypothesis.strategies as st
import pyarrow
import pytest
from pyarrow import parquet

from dsbs_jax import contract
from dsbs_jax.data.source import archive, record_reader
from tests.data import row_tables


def read(path):
  return list(record_reader.read(path.open('rb'), str(path)))


@pytest.mark.parametrize('suffix', row_tables.SUFFIXES)
def test_every_kind_gives_the_same_rows(tmp_path, suffix):
  path = row_tables.write(tmp_path / f'rows{suffix}')
  records = read(path)
  assert [record.value for record in records] == row_tables.ROWS
  assert len({record.place for record in records}) == len(records)
  assert record_reader.count(path.open('rb'), str(path)) == len(records)
  # A zip member cannot be mapped into memory.
  with zipfile.ZipFile(tmp_path / 'z.zip', 'w', zipfile.ZIP_DEFLATED) as z:
    z.write(path, path.name)
  opened = archive.open_archive(tmp_path / 'z.zip').open(path.name)
  assert [r.value for r in record_reader.read(opened, path.name)] == (
    row_tables.ROWS
  )


def test_rows_are_streamed():
  class Endless(io.RawIOBase):
    """A CSV without an end."""

    lines = 0

    def readline(self, limit=-1):
      self.lines += 1
      return b'q,a\n' if self.lines == 1 else b'x,y\n'

  file = Endless()
  rows = record_reader.read(file, 'endless.csv')
  for _ in range(3):
    assert next(rows).value == {'q': 'x', 'a': 'y'}
  assert file.lines <= 5


@pytest.mark.parametrize(
  'content, rows',
  [
    (b'\xef\xbb\xbfq,a\r\nx,y\r\n', [{'q': 'x', 'a': 'y'}]),
    (b'q,a\n\nx,y\n\n', [{'q': 'x', 'a': 'y'}]),
    (b'q , a\n x ,y', [{'q': ' x ', 'a': 'y'}]),
    (b',q,a\n0,x,y\n', [{'q': 'x', 'a': 'y'}]),
    (b'q,a,\nx,y,\n', [{'q': 'x', 'a': 'y'}]),
    (b'q,a\nx,\n,y\n', [{'q': 'x', 'a': ''}, {'q': '', 'a': 'y'}]),
    (b'"q","a"\n"x ""1"", 2\n3",y\n', [{'q': 'x "1", 2\n3', 'a': 'y'}]),
    (b'q\nx\n', [{'q': 'x'}]),
    (b'q;a\n"x;\ny, z";1,5\n', [{'q': 'x;\ny, z', 'a': '1,5'}]),
    (b'q\ta\nx;y\tz\n', [{'q': 'x;y', 'a': 'z'}]),
    (b'q,a\n', []),
    (b'', []),
    (b'q,a\n' + b'x' * 200_000 + b',y\n', [{'q': 'x' * 200_000, 'a': 'y'}]),
  ],
)
def test_odd_csv_is_read(tmp_path, content, rows):
  path = tmp_path / 'rows.csv'
  path.write_bytes(content)
  assert [record.value for record in read(path)] == rows


@pytest.mark.parametrize(
  'content, message',
  [
    (b'q,a\nx,y\nx,y,z\n', r'rows.csv:3 has 3 cells, expected the 2 .*\(q, a\)'),
    (b'q,a\n"x\ny",y\nx\n', r'rows.csv:4 has 1 cells'),
    (b'q,a\nx,y\n"x,y\n', r'rows.csv:3 .*expected quotes that are closed'),
    (b'q,a\n"x"y,y\n', r'rows.csv:2 .*quotes inside a quoted cell doubled'),
    (b'q,a\nx,\xe9\n', r'rows.csv:2 has the byte 0xe9 at position 2'),
    ('q,a\nx,y\n'.encode('utf-16'), r'rows.csv:1 has the byte 0xff.*to UTF-8'),
    (b'q,a,q\nx,y,z\n', r"rows.csv:1 names the column 'q' twice"),
    (b'q;a|b\n', r"rows.csv:1 reads 'q;a|b': one column.*separated by ','"),
    (b'\nq\ta\nx\ty\n', r"rows.csv:2 .*tab-separated .tsv"),
    (b'q,a\rx,y\r', r'rows.csv:1 .*new-line'),
    (b'q,a\n' + b'x' * (17 << 20), r'rows.csv:2 is longer than'),
  ],
)  # fmt: skip
def test_a_broken_csv_is_one_error_with_its_line(tmp_path, content, message):
  path = tmp_path / 'rows.csv'
  path.write_bytes(content)
  with pytest.raises(contract.UserError, match=message):
    read(path)


def test_a_quote_that_swallows_rows_of_tabs_is_an_error(tmp_path):
  path = tmp_path / 'rows.tsv'
  path.write_text('q\ta\n"I came.\tx\nI saw.\ty\nI won."\tz\nAnd?\tx\n')
  with pytest.raises(
    contract.UserError, match=r'rows.tsv:2 has a cell whose quote .* 2 lines'
  ):
    read(path)
  path.write_text('q\ta\n"I\ncame,\ttoo"\tx\n')
  assert [r.value for r in read(path)] == [{'q': 'I\ncame,\ttoo', 'a': 'x'}]
  path.write_text('q\ta\nx\t"def f():\n\treturn 1"\n')
  assert [r.value for r in read(path)] == [
    {'q': 'x', 'a': 'def f():\n\treturn 1'}
  ]
  path.write_text('q\n"I\ncame"\n')
  assert [r.value for r in read(path)] == [{'q': 'I\ncame'}]


@pytest.mark.parametrize('suffix', ['.parquet', '.arrow'])
def test_broken_columns_are_one_error(tmp_path, suffix):
  path = row_tables.write(tmp_path / f'rows{suffix}')
  whole = path.read_bytes()
  for content in (b'', b'question,answer\nx,y\n', whole[: len(whole) // 2]):
    path.write_bytes(content)
    with pytest.raises(contract.UserError, match='rows.* cannot be read'):
      read(path)
  twice = pyarrow.table([[1], [2]], names=['q', 'q'])
  if suffix == '.parquet':
    parquet.write_table(twice, path)
  else:
    row_tables.write_arrow(path, twice)
  with pytest.raises(contract.UserError, match="the column 'q' twice"):
    read(path)


def test_an_arrow_file_with_a_footer_is_read_too(tmp_path):
  path = tmp_path / 'rows.arrow'
  table = pyarrow.Table.from_pylist(row_tables.ROWS)
  with pyarrow.ipc.new_file(str(path), table.schema) as file:
    file.write_table(table)
  assert [record.value for record in read(path)] == row_tables.ROWS


@pytest.mark.parametrize('suffix', ['.parquet', '.arrow'])
def test_class_labels_of_datasets_are_read_by_name(tmp_path, suffix):
  feature = {'names': ['no', 'yes'], '_type': 'ClassLabel'}
  said = {'info': {'features': {'answer': feature, 'x': {'_type': 'Value'}}}}

  def write(numbers):
    table = pyarrow.table({'answer': pyarrow.array(numbers, pyarrow.int64())})
    table = table.replace_schema_metadata({'huggingface': json.dumps(said)})
    path = tmp_path / f'rows{suffix}'
    if suffix == '.parquet':
      parquet.write_table(table, path)
    else:
      row_tables.write_arrow(path, table)
    return path

  found = [record.value['answer'] for record in read(write([0, 1, None, -1]))]
  assert found == ['no', 'yes', None, None]
  with pytest.raises(contract.UserError, match=r'\[1\] has the class 2 in'):
    read(write([0, 2]))


@pytest.mark.parametrize('suffix', ['.jsonl', '.json', '.csv', '.tsv'])
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=100)
def test_any_text_is_rows_or_one_error(tmp_path_factory, suffix, data):
  whole = row_tables.write(tmp_path_factory.mktemp('x') / f'x{suffix}')
  content = bytearray(whole.read_bytes())
  for _ in range(data.draw(st.integers(1, 4))):
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
  end = data.draw(st.integers(0, len(content)))
  for some in (content, content[:end]):
    try:
      for record in record_reader.read(io.BytesIO(some), f'x{suffix}'):
        assert record.place.startswith(f'x{suffix}')
    except contract.UserError as error:
      assert f'x{suffix}' in str(error)


@pytest.mark.parametrize('suffix', ['.parquet', '.arrow'])
def test_cut_columns_are_their_first_rows_or_one_error(tmp_path, suffix):
  content = row_tables.write(tmp_path / f'x{suffix}').read_bytes()
  for end in range(0, len(content), 4):  # batches begin at multiples of 8
    found = []
    try:
      for record in record_reader.read(io.BytesIO(content[:end]), f'x{suffix}'):
        found.append(record.value)
    except contract.UserError as error:
      assert f'x{suffix} cannot be read' in str(error)
    else:
      pytest.fail(f'{end} of {len(content)} bytes are read as a whole file')
    assert found == row_tables.ROWS[: len(found)]


@pytest.mark.parametrize('offsets', [(0, -5), (0, 1 << 30), (4, 1)])
def test_offsets_that_lead_out_of_the_file_are_errors(tmp_path, offsets):
  path = row_tables.write(tmp_path / 'rows.arrow', [{'q': 'text'}])
  before, place, after = path.read_bytes().rpartition(struct.pack('<2i', 0, 4))
  assert place
  path.write_bytes(before + struct.pack('<2i', *offsets) + after)
  with pytest.raises(contract.UserError, match='rows.arrow cannot be read'):
    read(path)
