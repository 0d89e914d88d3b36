# SPDX-License-Identifier: Apache-2.0
"""Weights that cannot be read: the file and the reason are named."""

import json
import struct

import pytest

from dsbs_jax.interop.hf import hf_weights


def _write(path, dtype, size):
  """A safetensors file of one tensor of two zeros."""
  entry = {'dtype': dtype, 'shape': [2], 'data_offsets': [0, 2 * size]}
  head = json.dumps({'a.weight': entry}).encode()
  path.write_bytes(struct.pack('<Q', len(head)) + head + bytes(2 * size))


def test_a_dtype_that_is_not_supported_is_named(tmp_path):
  _write(tmp_path / 'model.safetensors', 'F8_E4M3', 1)
  with pytest.raises(
    ValueError, match='a.weight has the dtype F8_E4M3, which is not supported'
  ):
    hf_weights.open_folder(tmp_path, allow_pickle=False)


@pytest.mark.parametrize(
  ('index', 'message'),
  [
    ('{"weight_map": {"a', 'index.json cannot be read'),
    ('{"weight_map": {"a": "two.safetensors"}}', "shard 'two.safetensors'"),
  ],
)
@pytest.mark.parametrize('weights', ['model.safetensors', 'pytorch_model.bin'])
def test_a_cut_index_and_a_missing_shard_are_named(
  tmp_path, index, message, weights
):
  (tmp_path / f'{weights}.index.json').write_text(index)
  with pytest.raises(ValueError, match=message):
    hf_weights.open_folder(tmp_path, allow_pickle=True)
