# SPDX-License-Identifier: Apache-2.0
"""Rows of tables are inputs like lines of JSON."""

import dataclasses
import datetime
import io
import json

import pytest

from dsbs_jax import contract
from dsbs_jax.data import declared
from dsbs_jax.inference import input_lines
from tests.data import row_tables
from tests.data.test_declared import SAID

BENCHMARK = declared.make(
  dataclasses.replace(SAID, name='lines', input='{question}', label='{answer}')
)


def read(path, **options):
  with path.open('rb') as file:
    return list(input_lines.read_lines(file, str(path), **options))


@pytest.mark.parametrize('suffix', row_tables.SUFFIXES)
def test_every_kind_of_file_gives_the_same_inputs(tmp_path, suffix):
  path = row_tables.write(tmp_path / f'rows{suffix}')
  found = read(path, benchmark=BENCHMARK, id_fields=('answer',))
  assert [line.number for line in found] == list(range(1, 31))
  assert [(line.input.text, line.input.ids) for line in found] == [
    (row['question'], {'answer': row['answer']}) for row in row_tables.ROWS
  ]
  # Without a benchmark the same bytes, by which a resumed run is checked.
  again = [line.content for line in read(path)]
  assert again == [line.content for line in found]
  contents = {json.dumps(json.loads(line.content)) for line in found}
  assert contents == {json.dumps(row) for row in row_tables.ROWS}


def test_labels_are_not_needed_and_bad_rows_keep_their_number(tmp_path):
  path = tmp_path / 'rows.csv'
  path.write_text('question\nx\n" "\ny\n')
  first, blank, last = read(path, benchmark=BENCHMARK)
  assert (first.input.text, last.input.text, last.number) == ('x', 'y', 3)
  assert 'rows.csv:3 has no text' in blank.input.reason
  (line, *_) = read(path)
  assert "no field 'input'" in line.input.reason


def test_a_broken_row_of_a_table_is_one_error_and_the_next_is_read(tmp_path):
  path = tmp_path / 'rows.csv'
  path.write_text('question\nx\ny,z\n"a"b\n"l\nl"\nlast\n')
  first, cells, quote, long, last = read(path, benchmark=BENCHMARK)
  assert (first.input.text, long.input.text) == ('x', 'l\nl')
  assert (last.input.text, last.number) == ('last', 5)
  assert 'rows.csv:3 has 2 cells' in cells.input.reason
  assert 'rows.csv:4 cannot be read' in quote.input.reason
  # The number is the row's, the place its line in the file.
  assert (last.number, last.place) == (5, f'{path}:7')
  path.write_text('question\nx\n"never closed\ny\n')
  first, broken = read(path, benchmark=BENCHMARK)
  assert 'rows.csv:3 cannot be read' in broken.input.reason
  path.write_text('question,question\nx,y\n')
  with pytest.raises(contract.UserError, match='rows.csv:1 names the column'):
    read(path, benchmark=BENCHMARK)


@pytest.mark.parametrize('suffix', ['.csv', '.tsv', '.parquet', '.json'])
def test_a_table_without_inputs_is_one_error(tmp_path, suffix):
  path = row_tables.write(tmp_path / f'rows{suffix}')
  with (
    path.open('rb') as file,
    pytest.raises(contract.UserError, match='columns question, answer.*--rows'),
  ):
    input_lines.check_columns(file, str(path))
  row_tables.write(path, [{'input': 'x'}])
  with path.open('rb') as file:
    input_lines.check_columns(file, str(path))


def test_ids_that_json_cannot_hold_are_text(tmp_path):
  day = datetime.date(2026, 1, 2)
  path = tmp_path / 'rows.parquet'
  row_tables.write(path, [{'question': 'x', 'day': day}])
  (line,) = read(path, benchmark=BENCHMARK, id_fields=('day',))
  assert line.input.ids == {'day': '2026-01-02'}


def test_text_is_read_as_before():
  for name in ('-', 'rows.txt', 'rows.jsonl'):
    file = io.BytesIO(b'[not] a, table\n')
    (line,) = input_lines.read_lines(file, name)
    assert line.input.text == '[not] a, table'


def test_blank_lines_do_not_decide_what_a_file_holds():
  file = io.BytesIO(b'\xef\xbb\xbf\n \r\n{"input": "x"}\n')
  first, second, third = input_lines.read_lines(file, 'rows.jsonl')
  assert third.input.text == 'x'
  for blank in (first, second):
    assert 'has no text' in blank.input.reason
