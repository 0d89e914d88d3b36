# SPDX-License-Identifier: Apache-2.0
"""Folders and zip files read alike, and hostile zips are refused."""

import zipfile

import numpy as np
import pytest

from dsbs_jax import contract
from dsbs_jax.data.source import archive, sources
from tasks import anli1, asdiv, cqa, esnli, svamp
from tests.data import toy


def test_zip_gives_the_same_examples_as_the_folder(tmp_path):
  path = tmp_path / 'all.zip'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as packed:
    for file in sorted(toy.ARCHIVE.rglob('*.json')):
      packed.write(file, f'datasets/{file.relative_to(toy.ARCHIVE)}')
  for module in (cqa, svamp, asdiv, anli1, esnli):
    name = module.BENCHMARK
    assert sources.available(name, path) == sources.available(name, toy.ARCHIVE)
    for split in sources.available(name, toy.ARCHIVE):
      unpacked = list(sources.Examples(name, toy.ARCHIVE, split=split))
      assert list(sources.Examples(name, path, split=split)) == unpacked


def test_two_files_that_fit_equally_well_are_an_error(tmp_path):
  toy.source(tmp_path / 'a')
  toy.source(tmp_path / 'b')
  with pytest.raises(ValueError, match='has 2 files named train.jsonl'):
    sources.available(toy.BENCHMARK, tmp_path)
  toy.source(tmp_path / 'toy')
  assert sources.available(toy.BENCHMARK, tmp_path) == ('train', 'test')


def packed(path, members):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
    for name, data in members:
      file.writestr(name, data)
  return path


def test_zip_members_must_stay_inside_and_be_of_sane_size(tmp_path):
  link = zipfile.ZipInfo('toy/train.jsonl')
  link.external_attr = 0o120777 << 16
  for name, members, message in (
    ('a.zip', [('../train.jsonl', toy.ROW)], 'leaves the archive'),
    ('b.zip', [('/train.jsonl', toy.ROW)], 'leaves the archive'),
    ('c.zip', [('C:\\train.jsonl', toy.ROW)], 'leaves the archive'),
    ('d.zip', [(link, '/etc/passwd')], 'is a link'),
    ('e.zip', [('train.jsonl', b' ' * (8 << 20))], 'unpacks 8,'),
  ):
    path = packed(tmp_path / name, members)
    with pytest.raises(ValueError, match=message):
      archive.open_archive(path)


def test_large_members_and_small_blank_ones_are_read(tmp_path):
  large = np.random.default_rng(0).bytes(2 << 20)
  blank = b' ' * (1 << 20)
  members = [('large.json', large), ('blank.json', blank)]
  opened = archive.open_archive(packed(tmp_path / 'a.zip', members))
  for name, content in members:
    with opened.open(name) as file:
      assert file.read() == content


def test_an_encrypted_member_is_refused(tmp_path):
  path = packed(tmp_path / 'rows.zip', [('train.jsonl', toy.ROW)])
  data = bytearray(path.read_bytes())
  data[6] |= 1  # the flag, in both headers
  data[data.index(b'PK\1\2') + 8] |= 1
  path.write_bytes(data)
  with pytest.raises(contract.UserError, match="'train.jsonl' of .* encrypted"):
    archive.open_archive(path)


def test_a_damaged_zip_is_one_clear_error(tmp_path):
  noise = np.random.default_rng(0).integers(32, 34, 5000).tobytes()
  rows = (
    toy.ROW + b'{"id": "r1", "q": "' + noise.hex().encode() + b'", "a": "no"}'
  )
  path = packed(tmp_path / 'toy.zip', [('train.jsonl', rows)])
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 255
  path.write_bytes(data)
  with pytest.raises(ValueError, match='train.jsonl is damaged'):
    list(sources.Examples(toy.BENCHMARK, path, split='train'))
  path.write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match='no whole zip file'):
    sources.Examples(toy.BENCHMARK, path, split='train')


def test_a_member_packed_in_an_unknown_way_is_one_clear_error(tmp_path):
  path = tmp_path / 'rows.zip'
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('train.jsonl', toy.ROW)
  data = bytearray(path.read_bytes())
  data[8] = data[data.index(b'PK\1\2') + 10] = 99  # the method, in both headers
  path.write_bytes(data)
  with pytest.raises(contract.UserError, match="'train.jsonl' of .*method"):
    list(sources.read_rows(toy.BENCHMARK, path, 'train'))
