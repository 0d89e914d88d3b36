# SPDX-License-Identifier: Apache-2.0
"""Tokens are those of the texts, written once and opened without TensorFlow."""

import dataclasses
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dsbs_jax.data.prepared import ragged, tokens
from dsbs_jax.data.vocabulary import vocabularies
from tests.data import small_prepared

FORMS = (
  'gt_label',
  'llm_label',
  'rationale',
  'gt_finetune',
  'llm_single',
  'gt_answer_first',
)


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize('task', FORMS)
def test_ids_are_those_of_prefix_input_and_target(source, task, split):
  found = tokens.load(f'cqa_{task}', split, source)
  vocabulary = vocabularies.load(source.vocabulary)
  prefix = {'label': '[label] ', 'rationale': '[rationale] '}.get(
    task.split('_')[-1], ''
  )
  examples = small_prepared.examples(split)
  assert len(found) == len(examples)
  for i, example in enumerate(examples):
    llm = split == 'train' and task.startswith('llm')
    label = example.llm_label if llm else example.gt_label
    target = {
      'rationale': example.rationale,
      'llm_single': f'{example.rationale} [label] {label}',
      'gt_answer_first': f'{label} [rationale] {example.rationale}',
    }.get(task, label)
    text = prefix + example.input
    assert found.inputs[i].tolist() == [*vocabulary.encode(text), 1]
    assert found.targets[i].tolist() == [*vocabulary.encode(target), 1]
    assert found.input_text(i) == text
    assert found.target_text(i) == target
    assert found.example_id(i) == example.example_id
    assert found.index[i] == example.index
    if task != 'rationale':
      assert found.answer(i) == label


def test_a_blank_rationale_trains_the_end_alone(source):
  found = tokens.load('cqa_rationale', 'train', source)
  assert found.target_text(4) == ' '
  assert found.targets[4].tolist() == [1]


def test_premise_and_hypothesis_are_divided_by_the_end_id(source):
  found = tokens.load('anli1_gt_label', 'train', source)
  vocabulary = found.vocabulary
  example = small_prepared.examples('train', name='anli1')[0]
  premise, hypothesis = example.input.split('</s>')
  assert found.inputs[0].tolist() == [
    *vocabulary.encode('[label] ' + premise),
    1,
    *vocabulary.encode(hypothesis),
    1,
  ]


def test_the_cache_is_written_once_and_follows_what_decides_it(tmp_path):
  small_prepared.write(tmp_path, splits=('train',))
  source = tokens.Source(str(tmp_path), 'bytes')
  folders = []

  def new_folders(source):
    tokens.load('cqa_gt_label', 'train', source)
    before, now = set(folders), set(source.cache.iterdir())
    folders.extend(now - before)
    return len(now - before)

  assert new_folders(source) == 1
  written = {p: p.stat().st_mtime_ns for p in folders[0].iterdir()}
  assert new_folders(source) == 0
  assert written == {p: p.stat().st_mtime_ns for p in folders[0].iterdir()}
  assert new_folders(dataclasses.replace(source, prefixes='code')) == 1
  assert new_folders(dataclasses.replace(source, vocabulary='bytes:0')) == 1
  small_prepared.write(tmp_path, splits=('train', 'test'), overwrite=True)
  assert new_folders(source) == 0  # the same train examples
  other = small_prepared.examples('train')[:3]
  small_prepared.dataset_writer.write(
    'cqa', {'train': other}, data_dir=tmp_path, about={}, overwrite=True
  )
  assert new_folders(source) == 1
  assert len(tokens.load('cqa_gt_label', 'train', source)) == 3
  elsewhere = dataclasses.replace(source, cache_dir=str(tmp_path / 'x' / 'y'))
  tokens.load('cqa_gt_label', 'train', elsewhere)
  assert len(list((tmp_path / 'x' / 'y').iterdir())) == 1


def test_a_failed_write_leaves_nothing(source, tmp_path, monkeypatch):
  source = dataclasses.replace(source, cache_dir=str(tmp_path))
  save, calls = np.save, []

  def failing(path, array):
    calls.append(path)
    if len(calls) == 4:
      raise OSError('disk full')
    save(path, array)

  monkeypatch.setattr(np, 'save', failing)
  with pytest.raises(OSError, match='disk full'):
    tokens.load('cqa_gt_label', 'train', source)
  assert not list(tmp_path.iterdir())
  monkeypatch.undo()
  assert len(tokens.load('cqa_gt_label', 'train', source)) == 45


def test_a_damaged_cache_is_an_error(source, tmp_path):
  source = dataclasses.replace(source, cache_dir=str(tmp_path))
  tokens.load('cqa_gt_label', 'train', source)
  shorter = ragged.pack([[1], [2, 1]], np.int32)
  (folder,) = tmp_path.iterdir()
  np.save(folder / 'inputs.offsets.npy', shorter.offsets)
  with pytest.raises(ValueError, match='is damaged .*Delete that folder'):
    tokens.load('cqa_gt_label', 'train', source)


def test_a_flipped_bit_of_the_cache_is_an_error(source, tmp_path):
  """Nothing else would tell: it would be another token, or none at all."""
  source = dataclasses.replace(source, cache_dir=str(tmp_path))
  tokens.load('cqa_gt_label', 'train', source)
  (folder,) = tmp_path.iterdir()
  arrays = sorted(folder.glob('*.npy'))
  assert len(arrays) == 13
  for path in [*arrays, folder / 'sha256.json']:
    content = path.read_bytes()
    for place in (len(content) // 2, len(content) - 2):
      flipped = bytes([content[place] ^ 1])
      path.write_bytes(content[:place] + flipped + content[place + 1 :])
      with pytest.raises(ValueError, match='is damaged .*Delete that folder'):
        tokens.load('cqa_gt_label', 'train', source)
    path.write_bytes(content)
  tokens.load('cqa_gt_label', 'train', source)
  (folder / 'sha256.json').unlink()
  with pytest.raises(ValueError, match='is damaged .*Delete that folder'):
    tokens.load('cqa_gt_label', 'train', source)


def test_training_from_cached_tokens_imports_no_tensorflow(source, tmp_path):
  # A copy, so that the second process has to find what the first one wrote.
  shutil.copytree(
    source.data_dir,
    tmp_path / 'data',
    ignore=shutil.ignore_patterns('tokens'),
  )
  code = (
    'import os, sys\n'
    'from dsbs_jax.data import register\n'
    'from dsbs_jax.data.batching import batch_order, eval_loader, loader\n'
    'from dsbs_jax.data.prepared import tokens\n'
    'if child := os.fork():\n'  # two processes, of which one reads first
    '  assert not os.waitpid(child, 0)[1]\n'
    f'source = tokens.Source({str(tmp_path / "data")!r},'
    f' {source.vocabulary!r})\n'
    'order = batch_order.BatchOrder(batch_size=4)\n'
    'opened = loader.open("cqa_gt_dsbs", source, order)\n'
    'next(iter(opened))\n'
    'test = tokens.load("cqa_gt_label", "test", source)\n'
    'assert len(list(eval_loader.batches(test, 4))) == 3\n'
    'metric = register.benchmark("cqa").metric\n'
    'assert metric([test.answer(0)], [test.answer(0)])["accuracy"] == 100\n'
    'names = ("tensorflow", "seqio", "tensorflow_text")\n'
    'assert not [n for n in names if n in sys.modules]\n'
    'print("tensorflow_datasets" in sys.modules)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).resolve().parents[3],
  )
  # First cold, then from the cache.
  assert done.stdout.split() == ['True', 'False'], done.stderr


def test_names_that_are_no_task_are_clear_errors(source):
  with pytest.raises(ValueError, match='is a mixture.*cqa_gt_label and'):
    tokens.load('cqa_gt_dsbs', 'train', source)
  with pytest.raises(ValueError, match="svamp' is not prepared"):
    tokens.load('svamp_rationale', 'train', source)
  assert tokens.splits('cqa_gt_dsbs', source) == ('train', 'validation', 'test')


def test_ragged_rows_survive_joining():
  rows = [[3, 4], [], [5], [6, 7, 8]]
  whole = ragged.join([ragged.pack(rows[:2], int), ragged.pack(rows[2:], int)])
  assert [row.tolist() for row in whole] == rows
  assert whole.lengths.tolist() == [2, 0, 1, 3]
  with pytest.raises(IndexError):
    whole[4]
