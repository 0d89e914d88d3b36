# SPDX-License-Identifier: Apache-2.0
"""Exported tokenizers give our ids and texts, whatever the vocabulary."""

import io
import random
import sys

import pytest
import sentencepiece

from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.interop.hf import hf_tokenizer
from tests.data import small_prepared
from tests.recordings import hf_folders

KINDS = {
  'unigram': {},
  'byte_fallback': {'byte_fallback': True, 'user_defined_symbols': ['<sep>']},
  'no_dummy_prefix': {'add_dummy_prefix': False},
  'as_it_is': {
    'normalization_rule_name': 'identity',
    'remove_extra_whitespaces': False,
  },
  'bpe': {'model_type': 'bpe', 'byte_fallback': True},
  'char': {'model_type': 'char', 'add_dummy_prefix': False},
}
# Of what hard texts are made. A text that is <pad> and nothing else is the only
# one that reads otherwise in transformers.
PARTS = (
  *('pens', 'Ann has 12', ' ', '   ', '\n', '\t', '.', '▁', 'ж', '漢', '🙂'),
  *('<extra_id_0>', '<extra_id_99>', '<extra_id_100>', '▁<extra_id_3>', 'é'),
  *('<0x41>', 'a<pad>', 'a <unk>', '<s>', '<sep>', 'e\u0301', '\u1112\u1161'),
)


def texts():
  drawn = random.Random(0)
  mixed = [
    ''.join(drawn.choices(PARTS, k=drawn.randint(1, 6))) for _ in range(400)
  ]
  ends = [f'{text}</s>{mixed[0]}</s> {text}' for text in mixed[::9]]
  rows = [row.input for row in small_prepared.examples('train', number=9)]
  return [*mixed, *ends, '', ' ', '</s>', *rows]


@pytest.fixture(scope='module', params=[*KINDS, 'recorded', 'bytes'])
def vocabulary(request, tmp_path_factory):
  if request.param == 'bytes':
    return vocabularies.load('bytes')
  if request.param == 'recorded':
    return vocabularies.load(str(hf_folders.BUNDLED / 'spiece.model'))
  return vocabularies.SentencePieceVocabulary(train(**KINDS[request.param]))


def train(**options):
  written = io.BytesIO()
  lines = [row.input for row in small_prepared.examples('train')]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(
      [*lines, 'é [label] pens a 12 3 0 id e x t r _ < >']
    ),
    model_writer=written,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
    **{'vocab_size': 350, 'hard_vocab_limit': False} | options,
  )
  return written.getvalue()


def test_ids_and_texts_are_ours(vocabulary):
  tokenizers = pytest.importorskip('tokenizers', reason='it is not installed')
  files = hf_tokenizer.tokenizer_files(vocabulary)
  found = tokenizers.Tokenizer.from_str(files['tokenizer.json'].decode())
  assert found.get_vocab_size() == vocabulary.size
  for text in texts():
    ids = vocabulary.encode(text)
    assert found.encode(text).ids == [*ids, 1], text
    if 1 not in ids:
      assert found.decode(ids) == vocabulary.decode(ids), text
  special = [0, vocabulary.unk, vocabulary.size - 1, vocabulary.num_text_ids]
  said = [*special, *vocabulary.encode('pens'), *special, 1, 0]
  assert found.decode(said) == vocabulary.decode(said)
  assert hf_tokenizer.count_differences(files, vocabulary, texts()) == 0


def test_transformers_reads_the_folder_so(vocabulary, tmp_path):
  transformers = pytest.importorskip(
    'transformers', reason='transformers is not installed'
  )
  for name, content in hf_tokenizer.tokenizer_files(vocabulary).items():
    (tmp_path / name).write_bytes(content)
  (tmp_path / 'config.json').write_text('{"model_type": "t5"}')
  found = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert len(found) == vocabulary.size
  batch = found(texts(), padding=True)
  assert set(batch) == {'input_ids', 'attention_mask'}
  for text, ids in zip(texts(), batch['input_ids'], strict=True):
    ours = [*vocabulary.encode(text), 1]
    assert ids[: len(ours)] == ours and not any(ids[len(ours) :]), text
  said = [vocabulary.size - 1, *vocabulary.encode('pens'), 2, 1, 0, 0]
  (text,) = found.batch_decode([said], skip_special_tokens=True)
  assert text == vocabulary.decode(said)


@pytest.mark.parametrize(
  ('options', 'what'),
  [
    ({'model_type': 'word'}, 'words as pieces'),
    ({'treat_whitespace_as_suffix': True}, 'blanks behind words'),
    (
      {'model_type': 'bpe', 'user_defined_symbols': ['<sep>']},
      'user-defined pieces in BPE',
    ),
  ],
)
def test_what_cannot_be_expressed_is_refused(options, what):
  vocabulary = vocabularies.SentencePieceVocabulary(train(**options))
  with pytest.raises(ValueError, match=f'the vocabulary has {what}'):
    hf_tokenizer.tokenizer_files(vocabulary)


def test_nothing_is_exported_unchecked(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  vocabulary = vocabularies.load('bytes')
  files = hf_tokenizer.tokenizer_files(vocabulary)
  with pytest.raises(ValueError, match='tokenizers is not installed'):
    hf_tokenizer.count_differences(files, vocabulary, ['a'])


def test_other_ids_are_found():
  pytest.importorskip('tokenizers', reason='it is not installed')
  vocabulary = vocabularies.SentencePieceVocabulary(train())
  files = hf_tokenizer.tokenizer_files(vocabulary)
  wrong = files['tokenizer.json'].replace(b'"NFC"', b'"Lowercase"')
  files['tokenizer.json'] = wrong
  rows = ['pens'] * 99
  assert hf_tokenizer.count_differences(files, vocabulary, rows) == 0
  rows[:7] = ['Ann'] * 7
  with pytest.raises(ValueError, match="8 of 105 texts get other ids.*'Ann'"):
    hf_tokenizer.count_differences(files, vocabulary, rows)
