# SPDX-License-Identifier: Apache-2.0
"""Vocabularies write the ids that seqio and the original code write."""

import io
import json

import pytest
import sentencepiece
import seqio

from dsbs_jax.data.prepared import tokens
from dsbs_jax.data.seqio_tasks import providers
from dsbs_jax.data.vocabulary import (
  base_vocabulary,
  vocabularies,
  vocabulary_files,
)
from dsbs_jax.interop.hf import hf_tokenizer
from dsbs_jax.preparing import vocabulary_training
from tests.data import gemma_vocabulary, small_prepared
from tests.recordings import hf_folders

TEXTS = (
  'Ann has 12 pens.',
  '  two  blanks\nand a line ',
  'ﬁne ½ “quotes” ①',
  '[label] x [rationale] y predict: z',
  '<extra_id_0> a <extra_id_99>',
  'ж 漢字 🙂 {braces}',
  '',
)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return small_prepared.vocabulary(tmp_path_factory.mktemp('vocabulary'))


def _check_recorded_ids(vocabulary, path):
  cases = json.loads(path.read_text())
  for text, ids in zip(cases['texts'], cases['ids'], strict=True):
    if '<pad>' in text or '<unk>' in text:  # only there text spells out an id
      continue
    assert vocabulary.encode(text) + [1] == ids, text


def test_ids_equal_those_of_a_t5_tokenizer():
  vocabulary = vocabularies.load(str(hf_folders.BUNDLED / 'spiece.model'))
  assert vocabulary.size == 192
  _check_recorded_ids(vocabulary, hf_folders.BUNDLED / 'tokenizer_cases.json')


def test_ids_equal_the_original_tokenizer(shared_dir):
  folder = shared_dir / 'golden' / 'original'
  vocabulary = vocabularies.load(str(folder / 'tiny.4k.model'))
  assert vocabulary.size == 4100
  _check_recorded_ids(vocabulary, folder / 'tokenizer_cases.json')


@pytest.mark.parametrize('extra_ids', [0, 100])
def test_sentencepiece_ids_and_texts_equal_seqio(path, extra_ids):
  ours = vocabularies.load(f'{path}:{extra_ids}')
  theirs = seqio.SentencePieceVocabulary(path, extra_ids)
  assert ours.size == theirs.vocab_size
  for text in TEXTS:
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    known = [i for i in ids if i != 2 and i < ours.size - extra_ids]
    assert ours.decode(ids) == theirs.decode(known)
  assert ours.encode_all(TEXTS) == [ours.encode(text) for text in TEXTS]


def test_byte_ids_and_texts_equal_seqio():
  ours, theirs = vocabularies.load('bytes'), seqio.ByteVocabulary(100)
  assert ours.size == theirs.vocab_size
  for text in TEXTS:
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == text


def test_special_ids_leave_no_trace_in_texts(path):
  ours = vocabularies.load(path)
  pen, has = ours.encode('pens'), ours.encode('has')
  for ids, text in (
    ([*pen, ours.size, ours.size + 27], 'pens'),
    ([*pen, 1, *has], 'pens'),
    ([ours.size - 1, 0, *pen, ours.size - 100], 'pens'),
    ([2, *pen, 2, 2, *has, 2], 'pens has'),
    ([2, 1], ''),
    ([], ''),
  ):
    assert ours.decode(ids) == text
    marked = ours.decode_with_unknown(ids)
    assert ours.without_unknown(marked) == text
    assert marked.count('⁇') == ids.count(2)
  assert vocabularies.load('bytes').decode([100, 300, 5000]) == 'a'


def test_end_of_sequence_inside_a_text_is_one_id(path):
  for spec in (path, 'bytes'):
    ours = vocabularies.load(spec)
    left, right = ours.encode('Ann has pens.'), ours.encode('Bo has nuts.')
    assert ours.encode('Ann has pens.</s>Bo has nuts.') == [*left, 1, *right]
    assert ours.encode('</s>') == [1]


def test_training_repeats_itself_and_reserves_ids():
  texts = [e.input for e in small_prepared.examples('train')]
  model = vocabulary_training.train(texts, size=90)
  assert model == vocabulary_training.train(texts, size=90)
  processor = sentencepiece.SentencePieceProcessor(model_proto=model)
  assert (processor.pad_id(), processor.eos_id()) == (0, 1)
  assert (processor.unk_id(), processor.bos_id()) == (2, -1)
  ours = vocabularies.SentencePieceVocabulary(model, extra_ids=0)
  assert 2 not in ours.encode('[label] [rationale] :')  # asked for, not seen
  assert ours.decode(ours.encode('ﬁne\n plums')) == 'fine plums'  # nmt_nfkc


def test_fingerprint_follows_whatever_decides_ids(path):
  specs = (path, f'{path}:0', 'bytes', 'bytes:3')
  found = {vocabularies.load(spec).fingerprint for spec in specs}
  assert len(found) == len(specs)


def test_folders_of_transformers_are_read(path, tmp_path):
  file = vocabularies.load(f'{path}:3')
  (tmp_path / 'spiece.model').write_bytes(file.model)
  assert vocabularies.load(str(tmp_path)).size == file.size + 97

  def load(**config):
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
    return vocabularies.load(str(tmp_path))

  assert load(extra_ids=3).fingerprint == file.fingerprint
  names = [f'<extra_id_{i}>' for i in range(3)]
  assert load(additional_special_tokens=names).fingerprint == file.fingerprint
  found = load(
    tokenizer_class='ByT5Tokenizer',
    extra_special_tokens=names,  # as transformers 5 writes
    extra_ids=0,
  )
  assert found.fingerprint == vocabularies.load('bytes:3').fingerprint
  with pytest.raises(ValueError, match='a folder without tokenizer.json'):
    load(added_tokens_decoder={'123': {'content': '<sep>'}})
  with pytest.raises(ValueError, match='a folder without tokenizer.json'):
    load(
      tokenizer_class='ByT5Tokenizer',
      added_tokens_decoder={'384': {'content': '<sep>'}},
    )
  (tmp_path / 'tokenizer_config.json').write_text('[')
  with pytest.raises(ValueError, match='tokenizer_config.json cannot be read'):
    vocabularies.load(str(tmp_path))
  with pytest.raises(ValueError, match='a folder without spiece.model or'):
    vocabularies.load(str(tmp_path.parent))


@pytest.mark.parametrize('older', [True, False])
def test_tokens_that_somebody_added_are_read(path, tmp_path, older):
  pytest.importorskip('tokenizers', reason='tokenizers is not installed')
  import tokenizers

  file = vocabularies.load(path)
  files = hf_tokenizer.tokenizer_files(file)
  for name, content in files.items():
    (tmp_path / name).write_bytes(content)
  assert vocabularies.load(str(tmp_path)).fingerprint == file.fingerprint
  changed = tokenizers.Tokenizer.from_str(files['tokenizer.json'].decode())
  changed.add_tokens(['<hl>'])
  # As transformers 5 saves it beside the model of a download, and as those
  # before 4.34 save it.
  changed.save(str(tmp_path / 'tokenizer.json'))
  if older:
    added = json.dumps({'<hl>': file.size})
    (tmp_path / 'added_tokens.json').write_text(added)
  assert file.size in vocabularies.load(str(tmp_path)).encode('Ann <hl> pens')


def test_tokenizer_json_is_read_alone(path, tmp_path):
  pytest.importorskip('tokenizers', reason='tokenizers is not installed')
  file, place = vocabularies.load(path), tmp_path / 'tokenizer.json'
  place.write_bytes(hf_tokenizer.tokenizer_files(file)[place.name])
  ours = vocabularies.load(str(tmp_path))
  assert (ours.size, ours.unk) == (file.size, file.unk)
  for text in (*TEXTS, 'one</s>two'):
    ids = file.encode(text)
    assert ours.encode(text) == ids
    assert ours.decode(ids) == file.decode(ids)
  assert ours.decode([ours.size - 1, *ours.encode('pens'), 2, 1]) == 'pens'
  again = hf_tokenizer.tokenizer_files(ours)
  assert again['tokenizer.json'] == place.read_bytes()
  assert hf_tokenizer.count_differences(again, ours, TEXTS) == 0
  source = tokens.Source(data_dir='none', vocabulary=str(place))
  with pytest.raises(ValueError, match='which seqio and T5X cannot read'):
    providers.LazyVocabulary(lambda: source).resolve()
  with pytest.raises(ValueError, match='has its own. Leave the number out'):
    vocabularies.load(f'{place}:3')
  place.write_text('{}')
  with pytest.raises(ValueError, match='it is no tokenizer.json'):
    vocabularies.load(str(place))


def test_wrong_vocabularies_are_clear_errors(tmp_path):
  with pytest.raises(ValueError, match='is not a file.*--train_vocab'):
    vocabularies.load(str(tmp_path / 'none.model'))
  (tmp_path / 'text.model').write_text('no model')
  with pytest.raises(ValueError, match='text.model cannot be used'):
    vocabularies.load(str(tmp_path / 'text.model'))
  with pytest.raises(ValueError, match="vocabulary is ''"):
    vocabulary_files.parse_spec('')
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS[:4] * 9),
    model_writer=model,
    vocab_size=40,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  (tmp_path / 'bos.model').write_bytes(model.getvalue())
  with pytest.raises(ValueError, match='pad and eos ids.*pad_id=0'):
    vocabularies.load(str(tmp_path / 'bos.model'))
  with pytest.raises(ValueError, match='no vocabulary of 50 pieces'):
    vocabulary_training.train([], size=50)


@pytest.fixture
def gemma(tmp_path):
  """A folder with a vocabulary as Gemma's: a start id, and markers of turns."""
  model = gemma_vocabulary.train(
    'Ann has 12 pens. Answer: 5 user model', vocab_size=50
  )
  (tmp_path / 'tokenizer.model').write_bytes(model)
  return str(tmp_path)


def test_a_vocabulary_with_a_start_id_ends_inputs_by_text(gemma):
  """As Gemma's: in one sequence an end id would end the text."""
  vocabulary = vocabularies.load(gemma)
  (ids,) = vocabulary.encode_inputs(['Ann has 12'])
  assert ids[0] == 2 and 1 not in ids
  assert vocabulary.decode(ids) == 'Ann has 12\nAnswer: '
  assert ids[1 : -len(vocabulary.input_end)] == vocabulary.encode('Ann has 12')
  # It has no extra ids, so that a Gemma's table fits it.
  assert vocabulary.size == vocabulary.num_text_ids


def test_a_t5_vocabulary_ends_inputs_by_the_end_id(path):
  vocabulary = vocabularies.load(path)
  (ids,) = vocabulary.encode_inputs(['1 plus 2'])
  assert ids == [*vocabulary.encode('1 plus 2'), 1]


def test_the_turns_of_a_chat_stand_around_inputs(gemma):
  plain, turns = (vocabularies.load(f'{gemma}{f}') for f in ('', '#turns'))
  start, end = turns.token('<start_of_turn>'), turns.token('<end_of_turn>')
  (ids,) = turns.encode_inputs(['Ann has 12'])
  assert ids == [
    *(2, start, *turns.encode('user\n'), *turns.encode('Ann has 12'), end),
    *(*turns.encode('\n'), start, *turns.encode('model\n')),
  ]
  assert turns.input_start_text == '<start_of_turn>user\n'
  assert turns.input_end_text == '<end_of_turn>\n<start_of_turn>model\n'
  assert turns.fingerprint != plain.fingerprint


def test_a_text_of_ones_own_stands_around_inputs(gemma):
  own = vocabularies.load(f'{gemma}#pens: {{input}}\nmodel ')
  (ids,) = own.encode_inputs(['Ann has 12'])
  assert ids[0] == 2
  assert own.decode(ids) == 'pens: Ann has 12\nmodel '
  same = vocabularies.load(f'{gemma}#{{input}}{base_vocabulary.INPUT_END}')
  plain = vocabularies.load(gemma)
  assert same.fingerprint == plain.fingerprint
  assert same.encode_inputs(['12']) == plain.encode_inputs(['12'])
  with pytest.raises(ValueError, match='nothing behind {input}, expected some'):
    vocabularies.load(f'{gemma}#pens: {{input}}')


@pytest.mark.parametrize('spec', ['bytes#turns', 'bytes:3#a {input} b'])
def test_inputs_of_a_t5_are_put_into_nothing(spec):
  with pytest.raises(
    ValueError, match='expected that of a decoder, whose id 2'
  ):
    vocabularies.load(spec)


def test_the_text_around_inputs_is_the_end_of_a_spec():
  parsed = vocabulary_files.parse_spec('a/b:3#turns')
  assert parsed == vocabulary_files.Spec('a/b', 3, 'turns')
  assert parsed.text() == 'a/b:3#turns'
  assert vocabulary_files.parse_spec('a#b.model').path == 'a#b.model'
  put = vocabulary_files.with_input_format
  assert put('a/b:3#turns', 'Q: {input}\nA: ') == 'a/b:3#Q: {input}\nA: '
  assert put('a/b#turns', '') == 'a/b'
  with pytest.raises(ValueError, match="'chat', expected one of .'turns'."):
    put('a/b', 'chat')


def test_a_umt5_has_a_start_id_that_it_never_writes(tmp_path):
  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['Ann has 12 pens'] * 9),
    model_writer=out,
    vocab_size=20,
    hard_vocab_limit=False,
    **{'pad_id': 0, 'eos_id': 1, 'bos_id': 2, 'unk_id': 3},
  )
  (tmp_path / 'spiece.model').write_bytes(out.getvalue())
  vocabulary = vocabularies.load(str(tmp_path / 'spiece.model'))
  (ids,) = vocabulary.encode_inputs(['Ann has 12'])
  assert ids == [*vocabulary.encode('Ann has 12'), 1]
  assert vocabulary.size == vocabulary.num_text_ids + 100
