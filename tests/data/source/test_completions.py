# SPDX-License-Identifier: Apache-2.0
"""Completions by id and by position, and what is wrong with them."""

import codecs
import json

import hypothesis
import hypothesis.strategies as st
import pytest

from dsbs_jax import contract
from dsbs_jax.data.source import completions, sources
from tasks import asdiv, cqa
from tests.data import toy


def test_completions_by_id_equal_the_archives(tmp_path):
  positional = {}
  for split in ('train', 'test'):
    files = sorted((toy.ARCHIVE / 'cqa/llm').glob(f'{split}_CoT_*.json'))
    texts = [t for file in files for t in json.loads(file.read_text())]
    rows = list(sources.read_rows(cqa.BENCHMARK, toy.ARCHIVE, split))
    lines = [
      {'kind': 'completion', 'id': row.example_id, 'sample': 0, 'text': text}
      for row, text in zip(rows, texts, strict=True)
    ]
    header = {'kind': 'header', 'settings': {'split': split}}
    toy.write_lines(tmp_path / f'{split}.jsonl', [header, *reversed(lines)])
    positional[split] = list(
      sources.Examples(cqa.BENCHMARK, toy.ARCHIVE, split=split)
    )
  folder, train = tmp_path, tmp_path / 'train.jsonl'
  for split, given in (
    ('train', folder),
    ('test', folder),
    ('train', train),
    ('test', {'test': tmp_path / 'test.jsonl'}),
  ):
    found = sources.Examples(
      cqa.BENCHMARK, toy.ARCHIVE, split=split, completions=given
    )
    assert list(found) == positional[split]
  other = sources.Examples(
    cqa.BENCHMARK, toy.ARCHIVE, split='test', completions=train
  )
  assert toy.statuses(other) == ['no_completion'] * 2


def test_rows_may_lack_completions_and_record_failures(tmp_path):
  source = toy.source(tmp_path)
  toy.write_lines(
    source / 'llm/train.jsonl',
    [
      toy.said(2, 'yes', kind='completion'),
      {'kind': 'failure', 'of': 'completion', 'id': 'r1', 'reason': 'http 400'},
      {'kind': 'failure', 'of': 'completion', 'id': 'r0', 'reason': 'timeout'},
      {'kind': 'lost', 'whatever': 1},
      toy.said(0, 'no'),
      toy.said(0, 'yes'),
    ],
  )
  examples = sources.Examples(toy.BENCHMARK, source, split='train')
  found = list(examples)
  assert toy.statuses(found) == ['parsed', 'failed', 'parsed', 'no_completion']
  assert found[0].llm_label == 'no', 'the first of two lines wins'
  assert (found[3].llm_label, found[3].rationale) == ('', '')
  assert (examples.counts.rows, examples.counts.answered) == (4, 2)
  assert examples.counts.accuracy == 50.0


@pytest.mark.parametrize(
  'content, message',
  [
    (
      toy.SAID + b'{"id": "r9", "text": "x"}\n',
      r"1 completions for ids .*'r9'",
    ),
    (toy.SAID + b'{"id": "r1"}\n', r'train.jsonl:2 .*strings "id" and "text"'),
    (toy.SAID + b'{"id": 1, "text": "x"}\n', r'train.jsonl:2 .*strings "id"'),
    (b'{"id": \n' + toy.SAID, r'train.jsonl:1 reads'),
    (toy.SAID + b'\xff\xfe\n', r'train.jsonl:2 .*UTF-8'),
    (
      toy.SAID + b'{"id": "r0", "text": "x", "sample": "1"}\n',
      r':2 has sample',
    ),
    (toy.SAID + b'[]\n', r':2 is'),
    (
      toy.SAID * 2 + b'{"id": "r0", "text": "x"}\n',
      r":3 has another text for the id 'r0'.*Number them",
    ),
    (
      toy.SAID + b'{"id": "r0", "text": "x", "kind": "counterfactual"}\n',
      r':2 .*strings "id" and "text" and "hint"',
    ),
  ],
)
def test_wrong_completions_by_id_are_one_clear_error(
  tmp_path, content, message
):
  toy.write(tmp_path / 'train.jsonl', toy.ROW)
  toy.write(tmp_path / 'llm/train.jsonl', content)
  with pytest.raises(ValueError, match=message):
    list(sources.Examples(toy.BENCHMARK, tmp_path, split='train'))


@pytest.mark.parametrize('cut', [b'{"id": "r0", "te', b'{"id": "\xe2\x82'])
def test_a_torn_last_line_of_completions_is_left_out(tmp_path, cut):
  toy.write(tmp_path / 'train.jsonl', toy.ROW)
  toy.write(tmp_path / 'llm/train.jsonl', toy.SAID + cut)
  examples = sources.Examples(toy.BENCHMARK, tmp_path, split='train')
  assert toy.statuses(examples) == ['parsed']
  assert examples.counts.torn == 1


@pytest.mark.parametrize(
  'content, message',
  [
    ('["a", "b"]', r'2 completions for 1 rows'),
    ('[]', r'ends after 0 completions, but .*train.jsonl:1 is row 1'),
    ('[5]', r'train_CoT_0.json\[0\] is .5., expected a JSON string'),
    ('["a"', r'expected JSON'),
  ],
)
def test_positional_completions_must_fit_the_rows(tmp_path, content, message):
  toy.write(tmp_path / 'train.jsonl', toy.ROW)
  toy.write(tmp_path / 'llm/train_CoT_0.json', content.encode())
  with pytest.raises(ValueError, match=message):
    list(sources.Examples(toy.BENCHMARK, tmp_path, split='train'))


def test_the_parts_of_a_split_are_checked_one_by_one(tmp_path):
  pear = {'input': 'pears?', 'label': '1'}
  fig = {'Body': 'b', 'Question': 'q', 'Formula': '1=1', 'Answer': '1'}
  toy.write_lines(tmp_path / 'svamp/svamp_train.json', [pear] * 4)
  toy.write_lines(tmp_path / 'asdiv/asdiv_train.json', [fig] * 4)
  for name, size in (('svamp', 5), ('asdiv', 3)):
    (tmp_path / name / 'llm').mkdir()
    (tmp_path / name / 'llm/train_CoT_0.json').write_text(
      json.dumps(['x'] * size)
    )
  with pytest.raises(ValueError, match='5 completions for 4 rows'):
    list(sources.Examples(asdiv.AUGMENTED, tmp_path, split='train'))


def test_ids_that_share_a_hash_are_told_apart(tmp_path, monkeypatch):
  monkeypatch.setattr(completions, '_hash', lambda example_id: 7)
  source = toy.source(tmp_path)
  lines = [toy.said(i, ('yes', 'no')[i % 2]) for i in (3, 1, 0, 2)]
  toy.write_lines(source / 'llm/train.jsonl', lines)
  found = list(sources.Examples(toy.BENCHMARK, source, split='train'))
  assert [e.rationale for e in found] == [
    f'It is {i} for sample 0.' for i in range(4)
  ]


def test_lone_surrogates_of_a_model_are_replaced(tmp_path):
  toy.write(tmp_path / 'train.jsonl', toy.ROW)
  toy.write(
    tmp_path / 'llm/train.jsonl',
    rb'{"id": "r0", "text": "A \ud83d. The answer is yes."}' + b'\n',
  )
  (example,) = sources.Examples(toy.BENCHMARK, tmp_path, split='train')
  assert example.rationale == 'A \ufffd.'


def test_the_answer_to_a_retry_replaces_the_first(tmp_path):
  source = toy.source(tmp_path)
  labels = [(0, 'no', {}), (0, 'yes', {'retry': True}), (0, 'no', {})]
  lines = [toy.said(i, label, **more) for i, label, more in labels]
  toy.write_lines(source / 'llm/train.jsonl', lines)
  examples = sources.Examples(toy.BENCHMARK, source, split='train')
  assert next(iter(examples)).llm_label == 'yes'


@pytest.mark.parametrize(
  'text, answer, reasoning',
  [
    ('So: 4. The answer is 4.', 'So: 4. The answer is 4.', ''),
    ('<think>\nHm. 3?\n</think>\n\nIt is 4.', 'It is 4.', 'Hm. 3?'),
    (
      'Hm. 3?\n</think>\nIt is 4.',
      'It is 4.',
      'Hm. 3?',
    ),  # opened by a template
    ('<think></think> It is 4.', 'It is 4.', ''),
    (' <think> Hm. The answer is', '', 'Hm. The answer is'),  # cut
    ('', '', ''),
  ],
)
def test_reasoning_is_no_part_of_the_answer(text, answer, reasoning):
  assert completions.split_reasoning(text) == (answer, reasoning)


def test_reasoning_in_the_texts_of_earlier_files_is_left_out(tmp_path):
  toy.write(tmp_path / 'train.jsonl', toy.ROW)
  line = toy.said(0, 'yes')
  line['text'] = f'<think>No? The answer is no.</think>{line["text"]}'
  for more, status in (({'prompt_hash': '0'}, 'parsed'), ({}, 'two_markers')):
    toy.write_lines(tmp_path / 'llm/train.jsonl', [line | more])
    (example,) = sources.Examples(toy.BENCHMARK, tmp_path, split='train')
    assert example.status == status


@pytest.mark.parametrize('beside', [True, False])
@pytest.mark.parametrize(
  'settings, words',
  [
    ({'benchmark': 'other'}, "benchmark 'other', expected 'toy'"),
    ({'split': 'test'}, "split 'test', expected 'train'"),
  ],
)
def test_files_of_other_rows_are_refused_also_behind_the_right_ones(
  tmp_path, settings, words, beside
):
  source = toy.source(tmp_path)
  headers = [
    {
      'kind': 'header',
      'settings': {'benchmark': 'toy', 'split': 'train'} | more,
    }
    for more in ({}, settings)
  ]
  lines = [headers[0], toy.said(0, 'yes'), headers[1], toy.said(1, 'no')]
  path = source / 'llm/train.jsonl'
  toy.write_lines(path, lines)
  given = None if beside else path.parent
  with pytest.raises(contract.UserError, match=f'train.jsonl:3 .*{words}'):
    list(
      sources.Examples(toy.BENCHMARK, source, split='train', completions=given)
    )


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
  toy.write(tmp_path / 'train.jsonl', codecs.BOM_UTF8 + toy.ROW)
  toy.write(tmp_path / 'llm/train.jsonl', codecs.BOM_UTF8 + toy.SAID)
  (example,) = sources.Examples(toy.BENCHMARK, tmp_path, split='train')
  assert (example.status, example.llm_label) == ('parsed', 'yes')


hostile = st.lists(
  st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
      [
        toy.SAID,
        toy.ROW,
        b'{"id": "r0", "sample": 1e9, "text": "x"}',
        b'{"kind": "failure", "id": "r0"}',
        b'{"kind": [], "id": "r0", "text": ""}',
        b'\n',
        b'[' * 2000,
        b'\x00',
        b'"\xed\xa0\x80"',
        b'[1e999, NaN]',
      ]
    ),
  ),
  max_size=6,
).map(b''.join)


@hypothesis.given(rows=hostile, said=hostile)
@hypothesis.settings(max_examples=300)
def test_any_bytes_are_read_or_refused_with_a_value_error(
  tmp_path_factory, rows, said
):
  folder = tmp_path_factory.mktemp('hostile')
  toy.write(folder / 'llm/train.jsonl', said)
  for content in (rows, toy.ROW):
    toy.write(folder / 'train.jsonl', content)
    try:
      examples = list(sources.Examples(toy.BENCHMARK, folder, split='train'))
    except ValueError as error:
      assert 'expected' in str(error)
    else:
      assert examples and all(e.gt_label == 'yes' for e in examples)
