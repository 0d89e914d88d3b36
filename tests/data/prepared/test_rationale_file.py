# SPDX-License-Identifier: Apache-2.0
"""Several rationales of a row are kept beside examples that stay as they are."""

import dataclasses

import pytest

from dsbs_jax import contract
from dsbs_jax.data.prepared import dataset_writer, store
from tests.data import small_prepared


def write(folder, examples, **options):
  return dataset_writer.write(
    'sums', {'train': examples}, data_dir=folder, about={}, **options
  )


def test_all_rationales_come_back_and_examples_are_the_same_files(tmp_path):
  rows = small_prepared.several(number=9)
  plain = write(tmp_path / 'plain', small_prepared.examples('train', number=9))
  kept = write(tmp_path / 'kept', rows, counts=lambda split: {'note': split})
  assert dict(kept.rationales('train')) == {
    i: row.rationales for i, row in enumerate(rows) if row.rationales
  }
  about = kept.metadata['splits']['train']
  assert (about['rationales']['rows'], about['note']) == (6, 'train')
  assert about['rationales']['rationales'] == 6 + (1 + 2 + 3) * 2
  assert kept.fingerprint('train') == plain.fingerprint('train')
  assert list(kept.examples('train')) == list(plain.examples('train'))
  folders = [
    store.folder('sums', tmp_path / name) for name in ('plain', 'kept')
  ]
  names = [{path.name for path in folder.iterdir()} for folder in folders]
  assert names[1] - names[0] == {'rationales-train.jsonl'} >= set()
  (record,) = (name for name in names[0] if 'record' in name)
  one, other = ((folder / record).read_bytes() for folder in folders)
  assert one == other


def test_without_several_there_is_no_file_and_choosing_is_refused(tmp_path):
  opened = write(tmp_path, small_prepared.examples('train', number=3))
  assert opened.rationales_fingerprint('train') is None
  assert 'rationales' not in opened.metadata['splits']['train']
  with pytest.raises(
    contract.UserError, match='one rationale per row.*--samples=5.*--overwrite'
  ):
    next(opened.rationales('train'))


def test_the_fingerprint_of_rationales_follows_them_and_damage_is_told(
  tmp_path,
):
  rows = small_prepared.several(number=4)
  other = dataclasses.replace(
    rows[3], rationales=tuple(reversed(rows[3].rationales))
  )
  found = [
    write(tmp_path, each, overwrite=True).rationales_fingerprint('train')
    for each in (rows, [*rows[:3], other], rows)
  ]
  assert found[0] == found[2] != found[1]
  file = store.folder('sums', tmp_path) / 'rationales-train.jsonl'
  whole = file.read_bytes()
  for damaged in (whole[:-20], whole.replace(b'many', b'nany', 1), b''):
    file.write_bytes(damaged)
    with pytest.raises(contract.UserError, match='is damaged.*--overwrite'):
      list(store.read('sums', tmp_path).rationales('train'))
  file.unlink()
  with pytest.raises(contract.UserError, match='is damaged.*No such file'):
    list(store.read('sums', tmp_path).rationales('train'))


def test_a_rationale_that_no_file_can_hold_names_its_row(tmp_path):
  rows = small_prepared.several(number=2)
  broken = dataclasses.replace(rows[1].rationales[0], text='half \ud83d')
  rows[1] = dataclasses.replace(rows[1], rationales=(broken, broken))
  with pytest.raises(contract.UserError, match='row 4 .*not valid Unicode'):
    write(tmp_path, rows)
  assert not store.exists('sums', tmp_path)
