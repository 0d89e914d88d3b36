# SPDX-License-Identifier: Apache-2.0
"""A GGUF file becomes the Hugging Face folder that it was converted from."""

import numpy as np
import pytest

from dsbs_jax import contract
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.interop import gguf_checkpoint
from dsbs_jax.interop.hf import hf_checkpoint
from tests.core.gemma import recorded_gemma as recorded

gguf = pytest.importorskip('gguf', reason='GGUF files need the gguf package')
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def _pieces():
  """(piece, score, type), as llama.cpp's converter writes those of a Gemma."""
  yield from ((name, 0.0, CONTROL) for name in ('<pad>', '<eos>', '<bos>'))
  yield '<unk>', 0.0, CONTROL
  yield from ((text, 0.0, USER_DEFINED) for text in ('\n', '  '))
  yield from ((text, -float(n), NORMAL) for n, text in enumerate(('an', '▁an')))
  yield from ((char, -9.0 - n, NORMAL) for n, char in enumerate('▁aenrsw:A'))
  yield from ((f'<0x{value:02X}>', 0.0, BYTE) for value in range(256))


def _write(path, *, architecture='gemma3', kind='F32', drop=''):
  writer = gguf.GGUFWriter(path, architecture)
  for name, value in {
    'embedding_length': 32,
    'block_count': 2,
    'feed_forward_length': 64,
    'attention.head_count': 4,
    'attention.head_count_kv': 1,
    'attention.key_length': 32,
    'attention.sliding_window': 16,
  }.items():
    writer.add_uint32(f'{architecture}.{name}', value)
  writer.add_float32(f'{architecture}.rope.freq_base', 1e6)
  tokens, scores, kinds = zip(*_pieces(), strict=True)
  writer.add_tokenizer_model('llama')
  writer.add_token_list(tokens)
  writer.add_token_scores(scores)
  writer.add_token_types(kinds)
  for name, token in {'bos': 2, 'eos': 1, 'unknown': 3, 'padding': 0}.items():
    writer.add_uint32(f'tokenizer.ggml.{name}_token_id', token)
  rng = np.random.default_rng(0)
  tensors = {'output_norm': (32,), 'token_embd': (len(tokens), 32)}
  for block in ('blk.0.', 'blk.1.'):
    for name, shape in {
      'attn_norm': (32,),
      'post_attention_norm': (32,),
      'ffn_norm': (32,),
      'post_ffw_norm': (32,),
      'attn_q_norm': (32,),
      'attn_k_norm': (32,),
      'attn_q': (128, 32),
      'attn_k': (32, 32),
      'attn_v': (32, 32),
      'attn_output': (32, 128),
      'ffn_gate': (64, 32),
      'ffn_up': (64, 32),
      'ffn_down': (32, 64),
    }.items():
      tensors[block + name] = shape
  written = {}
  for name, shape in tensors.items():
    if name == drop:
      continue
    array = written[name] = rng.normal(size=shape).astype(np.float32)
    if len(shape) == 1 or kind == 'F32':
      writer.add_tensor(f'{name}.weight', array)
      continue
    quantised = getattr(gguf.GGMLQuantizationType, kind)
    data = gguf.quants.quantize(array, quantised)
    written[name] = gguf.quants.dequantize(data, quantised)
    writer.add_tensor(f'{name}.weight', data, raw_dtype=quantised)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return written


@pytest.mark.parametrize('kind', ['F32', 'F16', 'BF16', 'Q8_0', 'Q5_0'])
def test_weights_are_those_of_the_file(tmp_path, kind):
  written = _write(tmp_path / 'small.gguf', kind=kind)
  gguf_checkpoint.to_hugging_face(tmp_path / 'small.gguf', tmp_path / 'hf')
  config = hf_checkpoint.config_from_hf(tmp_path / 'hf')
  assert (config.num_layers, config.window, config.global_period) == (2, 16, 6)
  params = hf_checkpoint.load_params(tmp_path / 'hf', config)
  layer = params['decoder']['layers_1']
  for found, name in (
    (params['token_embedder']['embedding'], 'token_embd'),
    (layer['self_attention']['query']['kernel'].T, 'blk.1.attn_q'),
    (layer['self_attention']['out']['kernel'].T, 'blk.1.attn_output'),
    (layer['mlp']['wi_0']['kernel'].T, 'blk.1.ffn_gate'),
    (layer['mlp']['wo']['kernel'].T, 'blk.1.ffn_down'),
  ):
    np.testing.assert_array_equal(found, written[name])
  for found, name in (
    (layer['pre_attention_norm']['scale'], 'blk.1.attn_norm'),
    (layer['post_mlp_norm']['scale'], 'blk.1.post_ffw_norm'),
    (layer['self_attention']['key_norm']['scale'], 'blk.1.attn_k_norm'),
    (params['decoder']['decoder_norm']['scale'], 'output_norm'),
  ):
    np.testing.assert_array_equal(found, written[name] - np.float32(1.0))
  rows = recorded.padded(np.array([[2, 9, 8]]), np.array([[7, 1]]))
  assert np.all(np.isfinite(recorded.apply(config, params, rows)))


def test_its_vocabulary_starts_and_ends_inputs_as_a_decoder_needs(tmp_path):
  _write(tmp_path / 'small.gguf')
  gguf_checkpoint.to_hugging_face(tmp_path / 'small.gguf', tmp_path / 'hf')
  vocabulary = vocabularies.load(str(tmp_path / 'hf'))
  assert vocabulary.size == len(list(_pieces()))
  (ids,) = vocabulary.encode_inputs(['an  an é'])
  assert ids[0] == contract.BOS_ID and 1 not in ids
  pieces = [vocabulary.piece(token) for token in ids]
  assert pieces[1:5] == ['an', '▁▁', 'an', '▁']
  assert pieces[5:7] == ['<0xC3>', '<0xA9>']
  assert vocabulary.decode(ids) == 'an  an é\nAnswer: '


def test_a_student_s_folder_is_written_once(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  _write(tmp_path / 'small.gguf')
  said = []
  one, other = (
    gguf_checkpoint.converted(str(tmp_path / 'small.gguf'), say=said.append)
    for _ in range(2)
  )
  assert one == other and len(said) == 1 and one in said[0]
  assert hf_checkpoint.config_from_hf(one).num_layers == 2


def test_another_process_may_write_it_meanwhile(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  _write(tmp_path / 'small.gguf')
  file = str(tmp_path / 'small.gguf')

  def say(text):
    if not meanwhile:
      meanwhile.append(text)
      meanwhile.append(gguf_checkpoint.converted(file, say=print))

  meanwhile = []
  monkeypatch.setattr(gguf_checkpoint.os, 'getpid', iter(range(9)).__next__)
  folder = gguf_checkpoint.converted(file, say=say)
  assert folder == meanwhile[1]
  students = tmp_path / 'cache' / 'dsbs_jax' / 'students'
  assert [str(path) for path in students.iterdir()] == [folder]


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'architecture': 'llama'}, "kind 'llama', expected gemma3"),
    ({'drop': 'blk.1.ffn_up'}, r'no tensor blk\.1\.ffn_up\.weight'),
  ],
)
def test_other_files_are_refused(tmp_path, options, message):
  _write(tmp_path / 'small.gguf', **options)
  with pytest.raises(contract.UserError, match=message):
    gguf_checkpoint.to_hugging_face(tmp_path / 'small.gguf', tmp_path / 'hf')


def test_a_file_that_breaks_off_is_refused(tmp_path):
  _write(tmp_path / 'small.gguf')
  content = (tmp_path / 'small.gguf').read_bytes()
  (tmp_path / 'cut.gguf').write_bytes(content[:3000])
  with pytest.raises(contract.UserError, match='not a complete GGUF file'):
    gguf_checkpoint.to_hugging_face(tmp_path / 'cut.gguf', tmp_path / 'hf')
