# SPDX-License-Identifier: Apache-2.0
"""What is written is what is read, whole or not at all."""

import collections
import dataclasses
import json
import os
import pathlib
import random
import shutil

import pytest
import tensorflow_datasets as tfds

from dsbs_jax import contract
from dsbs_jax.data.prepared import dataset_writer, metadata_file, store
from tests.data import small_prepared


def test_examples_come_back_in_order_also_through_tfds(source):
  opened = store.read('cqa', source.data_dir)
  assert opened.splits == ('train', 'validation', 'test')
  for split in opened.splits:
    assert list(opened.examples(split, chunk=4)) == small_prepared.examples(
      split
    )
  builder = tfds.builder('dsbs_cqa', data_dir=source.data_dir)
  records = builder.as_data_source(split='train')
  assert len(records) == opened.num_examples('train') == 45
  first = small_prepared.examples('train')[0]
  assert set(records[0]) == {
    'index',
    'example_id',
    'input',
    'gt_label',
    'llm_label',
    'rationale',
    'status',
    'options',
    'verdict',
    'counterfactual',
    'label_probs',
  }
  assert records[0]['input'].decode() == first.input
  assert builder.info.metadata['source'] == 'invented'


def test_fingerprint_follows_contents_and_order(tmp_path):
  rows = small_prepared.examples('train', number=5)
  changed = [*rows[:4], dataclasses.replace(rows[4], rationale='other')]
  chosen = [*rows[:4], dataclasses.replace(rows[4], options=('1', '2'))]
  variants = [rows, rows[::-1], changed, chosen, rows[:4], rows]
  found = []
  for variant in variants:
    opened = dataset_writer.write(
      'sums',
      {'train': variant},
      data_dir=tmp_path,
      about={},
      counts=lambda split: {'note': split},
      overwrite=True,
    )
    found.append(opened.fingerprint('train'))
  assert len(set(found)) == 5 and found[0] == found[-1]
  assert opened.metadata['splits']['train']['note'] == 'train'


def test_nothing_is_replaced_or_half_written(tmp_path):
  rows = small_prepared.examples('train', number=5)
  dataset_writer.write('sums', {'train': rows}, data_dir=tmp_path, about={})
  with pytest.raises(ValueError, match='exists already.*--overwrite'):
    dataset_writer.write(
      'sums', {'train': rows[:1]}, data_dir=tmp_path, about={}
    )

  def broken():
    yield rows[0]
    raise RuntimeError('the reader fails')

  with pytest.raises(RuntimeError, match='the reader fails'):
    dataset_writer.write(
      'sums', {'train': broken()}, data_dir=tmp_path, about={}, overwrite=True
    )
  assert list(store.read('sums', tmp_path).examples('train')) == rows
  assert [path.name for path in tmp_path.iterdir()] == ['dsbs_sums']


def test_a_kill_while_a_dataset_is_replaced_leaves_one(tmp_path, monkeypatch):
  rows = small_prepared.examples('train', number=5)
  dataset_writer.write('sums', {'train': rows}, data_dir=tmp_path, about={})

  def killed(source, target):
    if pathlib.Path(target) == store.folder('sums', tmp_path):
      raise KeyboardInterrupt
    rename(source, target)

  rename = os.replace
  monkeypatch.setattr(os, 'replace', killed)
  with pytest.raises(KeyboardInterrupt):
    dataset_writer.write(
      'sums', {'train': rows[:1]}, data_dir=tmp_path, about={}, overwrite=True
    )
  monkeypatch.undo()
  assert store.exists('sums', tmp_path)
  assert list(store.read('sums', tmp_path).examples('train')) == rows


@pytest.mark.parametrize(
  'change, message',
  [
    ({'gt_label': ' '}, 'blank input or label'),
    ({'input': ''}, 'blank input or label'),
    ({'rationale': 'half \ud83d'}, 'rationale is not valid Unicode'),
    ({'example_id': 'train-0'}, 'an id that an earlier row has'),
  ],
)
def test_unsound_examples_are_refused_with_their_place(
  tmp_path, change, message
):
  rows = small_prepared.examples('train', number=2)
  rows[1] = dataclasses.replace(rows[1], **change)
  with pytest.raises(ValueError, match=f'sums train row 4.*{message}'):
    dataset_writer.write('sums', {'train': rows}, data_dir=tmp_path, about={})
  assert not store.exists('sums', tmp_path)


def test_what_is_not_there_says_how_to_get_it(source, tmp_path):
  with pytest.raises(ValueError, match='sums train has no examples'):
    dataset_writer.write('sums', {'train': []}, data_dir=tmp_path, about={})
  with pytest.raises(ValueError, match='dsbs_jax.prepare --benchmark=svamp'):
    store.read('svamp', source.data_dir)
  opened = small_prepared.write(tmp_path, splits=('validation',))
  with pytest.raises(ValueError, match="no split 'train'.*--splits=train"):
    opened.num_examples('train')
  metadata = store.folder('cqa', tmp_path) / 'metadata.json'
  metadata.write_text(json.dumps({**opened.metadata, 'format': '0.9.0'}))
  with pytest.raises(ValueError, match='not those of its sha256'):
    store.read('cqa', tmp_path)
  metadata_file.seal(metadata)
  with pytest.raises(ValueError, match="format '0.9.0', expected '1.0.0'"):
    store.read('cqa', tmp_path)


def _flipped(content, bit):
  content = bytearray(content)
  content[bit // 8] ^= 1 << bit % 8
  return bytes(content)


def test_no_flipped_bit_is_read_as_something_else(tmp_path):
  """The file format checks records; JSON files check nothing by themselves."""
  rows = small_prepared.examples('train', number=5)
  dataset_writer.write(
    'sums', {'train': rows}, data_dir=tmp_path, about={'from': 'us'}
  )
  metadata = store.read('sums', tmp_path).metadata
  draw, told = random.Random(1), collections.Counter()
  for path in sorted(store.folder('sums', tmp_path).iterdir()):
    content = path.read_bytes()
    used = 8 * len(content.rstrip(b'\0'))
    for bit in draw.sample(range(used), 60):
      path.write_bytes(_flipped(content, bit))
      try:
        opened = store.read('sums', tmp_path)
        assert list(opened.examples('train')) == rows
        assert metadata.items() <= opened.metadata.items()
      except contract.UserError as error:
        assert 'damaged' in str(error) or 'expected' in str(error)
        told[path.name] += 1
    path.write_bytes(content)
  assert told['metadata.json'] > 30 and len(told) == 4


def test_records_of_another_dataset_are_missed(tmp_path):
  """Whole files, which a copy has mixed up."""
  rows = small_prepared.examples('train', number=5)
  for name, written in (('a', rows), ('b', rows[::-1])):
    dataset_writer.write(
      'sums', {'train': written}, data_dir=tmp_path / name, about={}
    )
  (record,) = store.folder('sums', tmp_path / 'a').glob('*record*')
  shutil.copy(record, store.folder('sums', tmp_path / 'b'))
  opened = store.read('sums', tmp_path / 'b')
  with pytest.raises(
    contract.UserError, match='train in .* is damaged .rows and'
  ):
    list(opened.examples('train'))


@pytest.mark.parametrize('number', [1, 2])
def test_a_reader_between_two_renames_stops_no_writer(
  tmp_path, monkeypatch, number
):
  """It finds no dataset and puts back the one that was there."""
  rows = small_prepared.examples('train', number=5)
  dataset_writer.write('sums', {'train': rows}, data_dir=tmp_path, about={})
  rename, moves = os.replace, []

  def read_between(source, target):
    rename(source, target)
    if pathlib.Path(target).name.endswith('replaced'):
      moves.append(target)
      if len(moves) <= number:
        assert list(store.read('sums', tmp_path).examples('train')) == rows

  monkeypatch.setattr(os, 'replace', read_between)
  dataset_writer.write(
    'sums', {'train': rows[:1]}, data_dir=tmp_path, about={}, overwrite=True
  )
  assert len(moves) == number + 1
  assert list(store.read('sums', tmp_path).examples('train')) == rows[:1]
