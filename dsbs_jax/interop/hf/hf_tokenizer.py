# SPDX-License-Identifier: Apache-2.0
"""Our vocabularies as tokenizer.json, which transformers 4 and 5 read alike.

transformers' own T5Tokenizer takes pieces and scores from spiece.model and
assumes the rest: that there is a dummy prefix and no byte fallback. So the file
is written here, from all that the SentencePiece model says (`tokenizer_json`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data.vocabulary import vocabularies, vocabulary_files
from dsbs_jax.interop.hf import tokenizer_json

_HARD_TEXTS = (
  '  two  blanks\tand\na line ',
  'ﬁne ½ “quotes” e\u0301 한국어 漢字 🙂',
  '[label] ~ {braces} <0x41> <s> a <pad>',
  'one</s>two </s> ',
  '<extra_id_0>. Hello <extra_id_1>',
  '',
)


def tokenizer_files(vocabulary: vocabularies.Vocabulary) -> dict[str, bytes]:
  """The files by which transformers' AutoTokenizer gives the same ids.

  Raises:
    UserError: the vocabulary is of a kind that tokenizer.json cannot express.
  """
  if vocabulary.input_end_text:
    if isinstance(vocabulary, vocabularies.JsonVocabulary):
      return {'tokenizer.json': vocabulary.content, **gemma_files(b'')}
    return gemma_files(vocabulary.model)
  names, files = tokenizer_json.SPECIAL, {}
  if isinstance(vocabulary, vocabularies.JsonVocabulary):
    files['tokenizer.json'] = vocabulary.content
  elif isinstance(vocabulary, vocabularies.ByteVocabulary):
    files['tokenizer.json'] = _json(tokenizer_json.of_bytes(vocabulary))
  else:
    proto = vocabulary_files.parse_model(vocabulary.model)
    names = [proto.pieces[i].piece for i in (0, 1, vocabulary.unk)]
    files['spiece.model'] = vocabulary.model
    files['tokenizer.json'] = _json(
      tokenizer_json.of_sentencepiece(proto, vocabulary)
    )
  pad, eos, unk = names
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'model_input_names': ['input_ids', 'attention_mask'],
    'pad_token': pad,
    'eos_token': eos,
    'unk_token': unk,
    'extra_ids': vocabulary.size - vocabulary.num_text_ids,
    'clean_up_tokenization_spaces': False,
  }
  return files | {'tokenizer_config.json': _json(config)}


def gemma_files(model: bytes) -> dict[str, bytes]:
  """The tokenizer of a Gemma; `model` is b'' where it has a tokenizer.json."""
  config = {
    'tokenizer_class': 'GemmaTokenizer',
    'add_bos_token': True,
    'add_eos_token': False,
    'bos_token': '<bos>',
    'eos_token': '<eos>',
    'pad_token': '<pad>',
    'unk_token': '<unk>',
    'clean_up_tokenization_spaces': False,
    'extra_ids': 0,
  }
  files = {'tokenizer.model': model} if model else {}
  return files | {'tokenizer_config.json': _json(config)}


def _json(values: dict[str, Any]) -> bytes:
  return (json.dumps(values, ensure_ascii=False) + '\n').encode()


def count_differences(
  files: Mapping[str, bytes],
  vocabulary: vocabularies.Vocabulary,
  texts: Sequence[str],
) -> int:
  """How many texts get other ids by written files than by the vocabulary.

  Args:
    texts: of the run's data; some that are hard for tokenizers are added.

  Raises:
    UserError: more than one text in a hundred gets other pieces. Equal pieces
      in another order are none: of "111" as "1", "11" or "11", "1" either is
      likeliest, by rounding.
  """
  try:
    import tokenizers
  except ModuleNotFoundError as error:
    raise contract.UserError(
      'tokenizers is not installed, by which an exported tokenizer is checked.'
      ' Install it: pip install tokenizers.'
    ) from error
  written = tokenizers.Tokenizer.from_str(files['tokenizer.json'].decode())
  written.no_truncation()  # what a file keeps of them, transformers resets
  written.no_padding()
  texts = [*texts, *_HARD_TEXTS]
  ours = [[*ids, contract.EOS_ID] for ids in vocabulary.encode_all(texts)]
  theirs = [found.ids for found in written.encode_batch(texts)]
  pairs = list(zip(texts, ours, theirs, strict=True))
  wrong = [pair for pair in pairs if sorted(pair[1]) != sorted(pair[2])]
  if 100 * len(wrong) > len(texts):
    text, expected, found = wrong[0]
    raise contract.UserError(
      f'{len(wrong)} of {len(texts)} texts get other ids in transformers than'
      f' in training, such as {text[:60]!r}: {found[:12]}, expected'
      f' {expected[:12]}. Export with --format=stablehlo, which takes the'
      ' vocabulary along.'
    )
  return sum(a != b for _, a, b in pairs[: len(texts) - len(_HARD_TEXTS)])
