# SPDX-License-Identifier: Apache-2.0
"""Rows and completions are joined as the original joins them."""

import json

import numpy as np
import pytest

from dsbs_jax.data.source import sources
from tasks import anli1, asdiv, cqa, esnli, svamp
from tests.data import toy

# Counts of section 5 of the paper's data facts, whole files. Columns: rows,
# usable, blank rationale, blank label, label outside, accuracy, of the usable.
MEASURED = {
  (cqa, 'train'): (9741, 9738, 0, 3, 445, 74.26, 74.29),
  (cqa, 'test'): (1221, 1221, 0, 0, 46, 77.23, 77.23),
  (svamp, 'train'): (800, 787, 11, 13, 34 - 13, 73.25, 74.46),
  (svamp, 'test'): (200, 198, 2, 2, 7 - 2, 74.00, 74.75),
  (anli1, 'validation'): (1000, 991, 9, 9, 0, 66.80, 67.41),
  (esnli, 'validation'): (9842, 9838, 0, 4, 0, 73.17, 73.20),
}


@pytest.mark.parametrize(
  'module, split', MEASURED, ids=lambda v: getattr(v, '__name__', v)
)
def test_published_data_count_as_measured(shared_dir, module, split):
  examples = sources.Examples(
    module.BENCHMARK, shared_dir / 'data/datasets', split=split
  )
  found = examples.file_counts
  assert (
    found.rows,
    found.usable,
    found.blank_rationales,
    found.blank_labels,
    found.outside_labels,
    round(found.accuracy, 2),
    round(found.usable_accuracy, 2),
  ) == MEASURED[module, split]
  assert found.completions == found.answered == found.rows
  assert sum(found.statuses.values()) == found.rows


def test_derived_cqa_validation_is_the_papers(shared_dir):
  source = shared_dir / 'data/datasets'
  examples = sources.Examples(cqa.BENCHMARK, source, split='validation')
  held = list(examples)
  assert [e.index for e in held[:5]] == [4032, 2432, 4722, 1506, 47]
  assert len(held) == examples.counts.rows == examples.counts.kept == 975
  assert round(examples.counts.accuracy, 2) == 73.85
  train = list(sources.Examples(cqa.BENCHMARK, source, split='train'))
  assert len(train) == 8766
  together = [e.index for e in train + held]
  assert sorted(together) == list(range(9741))
  rows = list(sources.read_rows(cqa.BENCHMARK, source, 'train'))
  for example in held + train[:50]:
    assert rows[example.index].input == example.input
    assert rows[example.index].example_id == example.example_id


def test_derived_svamp_validation_is_the_papers(shared_dir):
  examples = sources.Examples(
    svamp.BENCHMARK, shared_dir / 'data/datasets', split='validation'
  )
  assert [e.index for e in examples][:5] == [759, 697, 2, 105, 672]
  assert (examples.counts.rows, examples.counts.accuracy) == (80, 78.75)


def test_svamp_json_alone_gives_the_published_rows(shared_dir, tmp_path):
  published = shared_dir / 'data/datasets'
  (tmp_path / 'SVAMP.json').write_bytes(
    (published / 'svamp/SVAMP.json').read_bytes()
  )
  for split, size in (('train', 800), ('test', 200)):
    permuted = sources.read_rows(svamp.BENCHMARK, tmp_path, split)
    expected = sources.read_rows(svamp.BENCHMARK, published, split)
    pairs = list(zip(permuted, expected, strict=True))
    assert len(pairs) == size
    for mine, theirs in pairs:
      assert (mine.input, mine.gt_label) == (theirs.input, theirs.gt_label)


def test_recorded_accuracies_of_full_files(shared_dir):
  path = shared_dir / 'golden/original/eval_reference.json'
  recorded = json.loads(path.read_text())
  for module in (cqa, svamp):
    full = recorded[module.BENCHMARK.name]['full']
    for split, expected in full.items():
      found = sources.Examples(
        module.BENCHMARK, shared_dir / 'data/datasets', split=split
      ).file_counts
      assert found.rows == expected['n']
      assert found.accuracy == pytest.approx(100 * expected['acc'])
      assert found.blank_labels == expected['llm_label_blank']
      assert found.blank_rationales == expected['rationale_blank']


def test_archive_fixture_reads_as_written():
  examples = {
    e.index: e
    for split in ('train', 'validation')
    for e in sources.Examples(cqa.BENCHMARK, toy.ARCHIVE, split=split)
  }
  assert len(examples) == 10
  assert examples[0].input == (
    'Where do you keep milk cold?\nAnswer Choices:\n(a) oven\n(b) fridge\n'
    '(c) shelf\n(d) garden\n(e) box'
  )
  assert examples[0].rationale == (
    'You keep milk cold in a place made for it. Of the choices, only fridge'
    ' fits.'
  )
  assert (examples[0].gt_label, examples[0].llm_label) == ('fridge', 'fridge')
  assert (examples[2].status, examples[2].correct) == ('parsed', False)
  assert [examples[i].status for i in (3, 5, 7)] == [
    'no_label',
    'not_a_choice',
    'no_marker',
  ]
  assert (examples[5].llm_label, examples[7].llm_label) == ('zoo or', ' ')
  assert [examples[i].example_id for i in (0, 9)] == ['q00', 'q09']


def test_files_of_completions_are_sorted_by_number(tmp_path):
  toy.write_lines(
    tmp_path / 'toy' / 'train.jsonl',
    [{'id': str(i), 'q': f'{i}?', 'a': 'yes'} for i in range(12)],
  )
  (tmp_path / 'toy' / 'llm').mkdir()
  for i in range(12):
    (tmp_path / f'toy/llm/train_CoT_{i}.json').write_text(
      json.dumps([f'This is {i}. The answer is yes.'])
    )
  read = [
    e.rationale
    for e in sources.Examples(toy.BENCHMARK, tmp_path, split='train')
  ]
  assert read == [f'This is {i}.' for i in range(12)]
  (tmp_path / 'toy/llm/train_CoT_4.json').unlink()
  with pytest.raises(ValueError, match='without a gap'):
    list(sources.Examples(toy.BENCHMARK, tmp_path, split='train'))


def test_another_teachers_folder_and_parser_are_used():
  palm = sources.Examples(cqa.BENCHMARK, toy.ARCHIVE, split='train')
  neox = sources.Examples(
    cqa.BENCHMARK, toy.ARCHIVE, split='train', teacher='gpt-neox'
  )
  assert list(neox) == list(palm)
  with pytest.raises(ValueError, match="completions of 'gpt-neox'"):
    list(
      sources.Examples(
        esnli.BENCHMARK, toy.ARCHIVE, split='test', teacher='gpt-neox'
      )
    )


def test_asdiv_follows_svamp_in_the_augmented_train():
  whole = sources.read_rows(asdiv.AUGMENTED, toy.ARCHIVE, 'train')
  rows = list(whole)
  assert [row.index for row in rows] == list(range(13))
  assert rows[0].gt_label == '( 8.0 - 3.0 )'
  assert rows[10].input == 'Ida has 8 pears and eats 3.\nHow many are left?'
  assert rows[10].gt_label == '5'
  train = sources.Examples(asdiv.AUGMENTED, toy.ARCHIVE, split='train')
  held = sources.Examples(asdiv.AUGMENTED, toy.ARCHIVE, split='validation')
  assert (train.counts.rows, held.counts.rows) == (11, 2)
  by_index = {e.index: e for e in [*train, *held]}
  assert (by_index[10].llm_label, by_index[10].correct) == ('(8 - 3)', True)
  assert by_index[11].status == 'malformed_label'
  assert (
    sources.Examples(asdiv.AUGMENTED, toy.ARCHIVE, split='test').counts.rows
    == 2
  )


def test_augmented_sizes_are_the_papers(tmp_path):
  pear = {'input': 'pears?', 'label': '1'}
  fig = {'Body': 'b', 'Question': 'q', 'Formula': '1=1', 'Answer': '1 (fig)'}
  toy.write_lines(tmp_path / 'svamp/svamp_train.json', [pear] * 800)
  toy.write_lines(tmp_path / 'asdiv/asdiv_train.json', [fig] * 2305)
  for split, size in (('train', 2794), ('validation', 311)):
    found = sources.Examples(asdiv.AUGMENTED, tmp_path, split=split).counts
    assert (found.rows, found.completions, found.accuracy) == (size, 0, None)


def test_a_subsample_takes_its_run_of_the_rows(tmp_path):
  toy.source(tmp_path, num_rows=40)
  taken = {}
  for run in (0, 1):
    examples = list(
      sources.Examples(
        toy.BENCHMARK, tmp_path, split='train', fraction=0.25, subset_seed=run
      )
    )
    taken[run] = [e.index for e in examples]
    assert [e.input for e in examples] == [f'is {i} even?' for i in taken[run]]
  assert len(taken[0]) == len(taken[1]) == 10 and taken[0] != taken[1]
  expected = np.random.default_rng(0).permutation(40)[30:]
  assert taken[0] == expected.tolist()
  # Test is never subsampled.
  test = sources.Examples(toy.BENCHMARK, tmp_path, split='test', fraction=0.25)
  assert test.counts.rows == 1


def test_counts_are_those_of_the_file_and_json():
  examples = sources.Examples(cqa.BENCHMARK, toy.ARCHIVE, split='train')
  found = json.loads(json.dumps(examples.file_counts.to_dict()))
  assert (found['rows'], found['completions'], found['answered']) == (10,) * 3
  assert found['statuses'] == {
    'parsed': 7,
    'no_label': 1,
    'not_a_choice': 1,
    'no_marker': 1,
  }
  assert found['accuracy'] == 60.0


def test_a_source_without_the_rows_says_what_it_looked_for(tmp_path):
  with pytest.raises(ValueError, match='does not exist'):
    sources.available(toy.BENCHMARK, tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='train.jsonl, test.jsonl'):
    sources.available(toy.BENCHMARK, tmp_path)
  toy.source(tmp_path)
  (tmp_path / 'test.jsonl').unlink()
  assert sources.available(toy.BENCHMARK, tmp_path) == ('train',)
  with pytest.raises(ValueError, match="no test rows of 'toy'.*test.jsonl"):
    sources.Examples(toy.BENCHMARK, tmp_path, split='test')
  with pytest.raises(ValueError, match="no file for the split 'validation'"):
    sources.Examples(toy.BENCHMARK, tmp_path, split='validation')
  with pytest.raises(ValueError, match='neither a folder nor a zip'):
    sources.available(toy.BENCHMARK, tmp_path / 'train.jsonl')
  with pytest.raises(ValueError, match='completions .* do not exist'):
    list(
      sources.Examples(
        toy.BENCHMARK, tmp_path, split='train', completions='/nowhere'
      )
    )
