# SPDX-License-Identifier: Apache-2.0
"""Our vocabularies as tokenizer.json, which transformers 4 and 5 read alike.

transformers' own T5Tokenizer takes pieces and scores from spiece.model and
assumes the rest: that there is a dummy prefix and no byte fallback. So the file
is written here, from all that the SentencePiece model says.

  text -> </s> is cut out -> normalizer, blanks become ▁ -> <extra_id_n> is cut
  out -> Unigram or BPE -> ids, </s>
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import sentencepiece_model, vocabularies

_BLANK = '▁'
# What <pad> and <unk> are looked for as: no text holds these noncharacters, so
# they are text where a text spells them, as in our own vocabularies.
_PAD, _UNK = '\uffff', '\ufdd0'
_SPECIAL = ('<pad>', vocabularies.EOS_TEXT, '<unk>')
_HARD_TEXTS = (
  '  two  blanks\tand\na line ',
  'ﬁne ½ “quotes” e\u0301 한국어 漢字 🙂',
  '[label] ~ {braces} <0x41> <s> a <pad>',
  'one</s>two </s> ',
  '<extra_id_0>. Hello <extra_id_1>',
  '',
)
_KEPT = '\ufffe'  # stands for a blank that no normalizer may touch


def tokenizer_files(vocabulary: vocabularies.Vocabulary) -> dict[str, bytes]:
  """The files by which transformers' AutoTokenizer gives the same ids.

  Args:
    vocabulary: of the exported student.

  Returns:
    Name -> content.

  Raises:
    UserError: the vocabulary is of a kind that tokenizer.json cannot express.
  """
  names, files = _SPECIAL, {}
  if isinstance(vocabulary, vocabularies.JsonVocabulary):
    files['tokenizer.json'] = vocabulary.content
  elif isinstance(vocabulary, vocabularies.ByteVocabulary):
    files['tokenizer.json'] = _json(_bytes(vocabulary))
  else:
    proto = sentencepiece_model.parse_model(vocabulary.model)
    names = [proto.pieces[i].piece for i in (0, 1, vocabulary.unk)]
    files['spiece.model'] = vocabulary.model
    files['tokenizer.json'] = _json(_sentencepiece(proto, vocabulary))
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


def _json(values: dict[str, Any]) -> bytes:
  return (json.dumps(values, ensure_ascii=False) + '\n').encode()


def count_differences(
  files: Mapping[str, bytes],
  vocabulary: vocabularies.Vocabulary,
  texts: Sequence[str],
) -> int:
  """Compares the ids of written files with those of the vocabulary.

  Args:
    files: of `tokenizer_files`.
    vocabulary: what they were written from.
    texts: of the run's data; some that are hard for tokenizers are added.

  Returns:
    How many of the given texts get other ids.

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


def _bytes(vocabulary: vocabularies.ByteVocabulary) -> dict[str, Any]:
  """No character is a piece, so each falls back to its bytes."""
  names = [*_SPECIAL, *(f'<0x{value:02X}>' for value in range(256))]
  extra = range(vocabulary.size - len(names))
  # Never read, because text has bytes only.
  names += [f'<extra_id_{number}>' for number in extra]
  model = _bpe({name: token for token, name in enumerate(names)}, [])
  decoders = [
    {'type': 'ByteFallback'},
    {'type': 'Fuse'},
    _replace('\ufffd', ''),
  ]
  return _tokenizer(
    model | {'unk_token': '<unk>', 'byte_fallback': True},
    added=_special_tokens(_SPECIAL, unk=vocabulary.unk),
    normalizers=_hide(_SPECIAL),
    decoders=decoders,
  )


def _sentencepiece(
  proto: Any, vocabulary: vocabularies.SentencePieceVocabulary
) -> dict[str, Any]:
  _check(proto)
  spec = proto.normalizer_spec
  special = [proto.pieces[i].piece for i in (0, 1, vocabulary.unk)]
  normalizers, splits = [], []
  extra = range(vocabulary.size - vocabulary.num_text_ids)
  if extra:  # a sentinel is not normalized where its blank is spelled out
    numbers = '|'.join(map(str, extra))
    sentinel = rf'{_BLANK}(?=<extra_id_(?:{numbers})>)'
    normalizers.append(_replace(sentinel, _KEPT))
  if 'nfkc' in spec.name:
    # Precompiled takes but one of two marks on a letter, and drops the other.
    normalizers.append({'type': 'NFC'})
  if spec.precompiled_charsmap:
    charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
    normalizers.append(
      {'type': 'Precompiled', 'precompiled_charsmap': charsmap}
    )
  if spec.remove_extra_whitespaces:
    normalizers.append(_replace(rf'\A +|[ {_BLANK}]+\z|(?<= ) +', ''))
  if spec.add_dummy_prefix:
    normalizers.append({'type': 'Prepend', 'prepend': _BLANK})
  normalizers += [_replace(rf'[ {_KEPT}]', _BLANK), *_hide(special)]
  fallback = proto.trainer_spec.byte_fallback
  if proto.trainer_spec.model_type == proto.trainer_spec.UNIGRAM:
    model = {
      'type': 'Unigram',
      'unk_id': vocabulary.unk,
      'vocab': _unigram_pieces(proto),
    }
    reserved = [p.piece for p in proto.pieces if _is_reserved(p)]
    splits = [_cut_names(reserved)]
  else:
    ids = {p.piece: token for token, p in enumerate(proto.pieces)}
    model = _bpe(ids, list(_merges(proto))) | {'unk_token': special[2]}
  # Normalized as a text is, the name gets the blank that a sentinel begins with.
  blank = '' if spec.add_dummy_prefix else _BLANK
  added = _special_tokens(special, unk=vocabulary.unk)
  added += [
    _added(vocabulary.size - 1 - number, f'{blank}<extra_id_{number}>', True)
    for number in reversed(extra)
  ]
  decoders = [{'type': 'ByteFallback'}] if fallback else []
  decoders += [{'type': 'Fuse'}, _replace(_BLANK, ' ')]
  if spec.remove_extra_whitespaces:
    decoders.append(_replace(r'\A +', ''))
  elif spec.add_dummy_prefix:
    decoders.append(_replace(r'\A ', ''))
  return _tokenizer(
    model | {'byte_fallback': fallback},
    added=added,
    normalizers=normalizers,
    splits=splits,
    decoders=decoders,
  )


def _check(proto: Any) -> None:
  """Refuses what tokenizer.json has no words for."""
  trainer, spec, piece = proto.trainer_spec, proto.normalizer_spec, proto.pieces
  kinds = {p.type for p in piece}
  unigram = trainer.model_type == trainer.UNIGRAM
  known = {p.piece for p in piece if p.type == p.NORMAL}
  problems = {
    'words as pieces': trainer.model_type == trainer.WORD,
    'blanks behind words': trainer.treat_whitespace_as_suffix,
    'blanks that are not ▁': not spec.escape_whitespaces,
    'a denormalizer': bool(proto.denormalizer_spec.precompiled_charsmap),
    'unused pieces': piece[0].UNUSED in kinds,
    'user-defined pieces in BPE': not unigram
    and piece[0].USER_DEFINED in kinds,
    'BPE pieces of characters that are no pieces': not unigram
    and not known.issuperset(set().union(*known)),
  }
  found = [name for name, holds in problems.items() if holds]
  if found:
    raise contract.UserError(
      f'the vocabulary has {" and ".join(found)}, which the tokenizers of'
      ' transformers cannot express. Export with --format=stablehlo, which'
      ' takes the SentencePiece model along.'
    )


def _is_reserved(piece: Any) -> bool:
  """Whether no text is ever read as this piece."""
  return piece.type not in (piece.NORMAL, piece.USER_DEFINED)


def _unigram_pieces(proto: Any) -> list[list]:
  """[piece, score] as SentencePiece's search weighs them."""
  normal = [p.score for p in proto.pieces if p.type == p.NORMAL]
  lowest, highest = min(normal), max(0.0, *normal)
  return [
    [
      p.piece,
      # The length of user-defined pieces counts in bytes.
      len(p.piece.encode()) * highest - 0.1
      if p.type == p.USER_DEFINED
      else lowest
      if _is_reserved(p)
      else p.score,
    ]
    for p in proto.pieces
  ]


def _merges(proto: Any) -> Iterable[tuple[str, str]]:
  """Every pair of pieces that make a piece, the best pieces first."""
  scores = {p.piece: p.score for p in proto.pieces if p.type == p.NORMAL}
  for piece in sorted(scores, key=lambda piece: -scores[piece]):
    for cut in range(1, len(piece)):
      pair = piece[:cut], piece[cut:]
      if pair[0] in scores and pair[1] in scores:
        yield pair


def _bpe(ids: dict[str, int], merges: Sequence[tuple[str, str]]) -> dict:
  return {'type': 'BPE', 'fuse_unk': True, 'vocab': ids, 'merges': merges}


def _replace(pattern: str, content: str) -> dict[str, Any]:
  return {'type': 'Replace', 'pattern': {'Regex': pattern}, 'content': content}


def _hide(names: Sequence[str]) -> list[dict[str, Any]]:
  """Lets <pad> and <unk>, which are added tokens, be found nowhere."""
  pad, _, unk = map(re.escape, names)
  hidden = {pad: _PAD, unk: _UNK}
  return [_replace(rf'\A{_BLANK}?{n}\z', char) for n, char in hidden.items()]


def _cut_names(names: Sequence[str]) -> dict[str, Any]:
  """Unigram finds every piece; cut in two, a reserved name is not found."""
  cut = '|'.join(f'{re.escape(n[0])}(?={re.escape(n[1:])})' for n in names)
  return {
    'type': 'Split',
    'pattern': {'Regex': cut},
    'behavior': 'MergedWithPrevious',
    'invert': False,
  }


def _added(token: int, content: str, normalized: bool) -> dict[str, Any]:
  return {
    'id': token,
    'content': content,
    'single_word': False,
    'lstrip': False,
    'rstrip': False,
    'normalized': normalized,
    'special': True,
  }


def _special_tokens(names: Sequence[str], *, unk: int) -> list[dict]:
  pad, eos, unknown = names
  return [
    _added(contract.PAD_ID, pad, True),
    _added(contract.EOS_ID, eos, False),
    _added(unk, unknown, True),
  ]


def _tokenizer(
  model: dict[str, Any],
  *,
  added: Sequence[dict],
  normalizers: Sequence[dict],
  splits: Sequence[dict] = (),
  decoders: Sequence[dict],
) -> dict[str, Any]:
  # tokenizers 0.23 gives tokens by what they are looked for as, and so does not
  # know them as special where it decodes.
  silent = _replace(rf'\A(?:{_BLANK}?<extra_id_\d+>|[{_PAD}{_UNK}])\z', '')
  eos = next(token for token in added if token['id'] == contract.EOS_ID)
  end = {'SpecialToken': {'id': eos['content'], 'type_id': 0}}
  first, second = (
    [{'Sequence': {'id': name, 'type_id': 0}}, end] for name in 'AB'
  )
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': added,
    'normalizer': {'type': 'Sequence', 'normalizers': normalizers},
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': splits}
    if splits
    else None,
    'post_processor': {
      'type': 'TemplateProcessing',
      'single': first,
      'pair': first + second,
      'special_tokens': {
        eos['content']: {
          'id': eos['content'],
          'ids': [contract.EOS_ID],
          'tokens': [eos['content']],
        }
      },
    },
    'decoder': {'type': 'Sequence', 'decoders': [silent, *decoders]},
    'model': model,
  }
