# SPDX-License-Identifier: Apache-2.0
"""A wrong row is one clear error with its file and line."""

import pytest

from dsbs_jax.data.source import sources
from tests.data import toy


@pytest.mark.parametrize(
  'content, message',
  [
    (toy.ROW + b'{"id": "r1", "q": "?"}\n', r"train.jsonl:2 .*no field 'a'"),
    (toy.ROW + b'\n\n{"id": "r1", "q": "?", "a": "maybe"}', r":4 has the label 'ma"),
    (toy.ROW + '{"id": "r1", "q": "?", "a": "\uff4eo"}'.encode(), r"is '.uff4eo', .* not 'no'\. Fix"),
    (toy.ROW + b'{"id": "r1", "q": 5, "a": "yes"}', r':2 has the input 5'),
    (toy.ROW + b'{"id": "r1", "q": "\xff", "a": "yes"}', r':2 .*0xff.*UTF-8'),
    (toy.ROW + b'{"id": "r1", "q": "\x00"}', r':2 reads .*expected JSON'),
    (toy.ROW + rb'{"id": "r1", "q": "\u0000", "a": "no"}', r':2 .*NUL'),
    (toy.ROW + rb'{"id": "r1", "q": "\ud800", "a": "no"}', r':2 .*surrogates'),
    (toy.ROW + b'{"id": "r1", "q": ', r':2 reads .*expected JSON'),
    (toy.ROW + b'[' * 100_000, r':2 reads .*nests too deep'),
    (toy.ROW + b'5\n', r":2 is '5', expected a JSON object"),
    (toy.ROW + toy.ROW, r":2 has the id 'r0' again"),
    (b'', r'no row in train'),
    (b'[1, 2', r'train.jsonl reads .*expected JSON'),
    (toy.ROW + b'9' * 5000, r':2 reads'),
  ],
)  # fmt: skip
def test_a_wrong_row_is_one_clear_error(tmp_path, content, message):
  toy.write(tmp_path / 'train.jsonl', content)
  with pytest.raises(ValueError, match=message):
    list(sources.Examples(toy.BENCHMARK, tmp_path, split='train'))


@pytest.mark.parametrize(
  'content',
  [
    b'\xef\xbb\xbf' + toy.ROW,
    b'\n \r\n' + toy.ROW.replace(b'\n', b'\r\n') + b'\n\n',
    toy.ROW.rstrip(),
    b'[' + toy.ROW + b']',
    b'\xef\xbb\xbf\n[\n' + toy.ROW + b'\n]\n',
  ],
)
def test_marks_blank_lines_and_arrays_are_read(tmp_path, content):
  toy.write(tmp_path / 'train.jsonl', content)
  (row,) = sources.read_rows(toy.BENCHMARK, tmp_path, 'train')
  assert (row.example_id, row.input, row.gt_label) == ('r0', '?', 'yes')
  assert sources.count_rows(toy.BENCHMARK, tmp_path, 'train') == 1
