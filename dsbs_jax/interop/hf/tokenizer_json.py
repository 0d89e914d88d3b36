# SPDX-License-Identifier: Apache-2.0
"""What a tokenizer.json says of a vocabulary, as JSON values.

text -> </s> is cut out -> normalizer, blanks become ▁ -> <extra_id_n> is cut
out -> Unigram or BPE -> ids, </s>
"""

import base64
import re
from collections.abc import Iterable, Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data.vocabulary import vocabularies

_BLANK = '▁'
# What <pad> and <unk> are looked for as: no text holds these noncharacters, so
# they are text where a text spells them, as in our own vocabularies.
_PAD, _UNK = '\uffff', '\ufdd0'
SPECIAL = ('<pad>', vocabularies.EOS_TEXT, '<unk>')
_KEPT = '\ufffe'  # stands for a blank that no normalizer may touch


def of_bytes(vocabulary: vocabularies.ByteVocabulary) -> dict[str, Any]:
  """A byte vocabulary's: no character is a piece, so each becomes its bytes."""
  names = [*SPECIAL, *(f'<0x{value:02X}>' for value in range(256))]
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
    added=_special_tokens(SPECIAL, unk=vocabulary.unk),
    normalizers=_hide(SPECIAL),
    decoders=decoders,
  )


def of_sentencepiece(
  proto: Any, vocabulary: vocabularies.SentencePieceVocabulary
) -> dict[str, Any]:
  """A SentencePiece model's, whose `proto` lacks the extra ids.

  Raises:
    UserError: the model does what tokenizer.json cannot express.
  """
  _check(proto)
  spec = proto.normalizer_spec
  special = [proto.pieces[i].piece for i in (0, 1, vocabulary.unk)]
  extra = range(vocabulary.size - vocabulary.num_text_ids)
  splits = []
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
  # Normalized as a text is, the name gets the blank that sentinels begin with.
  blank = '' if spec.add_dummy_prefix else _BLANK
  added = _special_tokens(special, unk=vocabulary.unk)
  added += [
    _added(vocabulary.size - 1 - number, f'{blank}<extra_id_{number}>', True)
    for number in reversed(extra)
  ]
  fallback = proto.trainer_spec.byte_fallback
  return _tokenizer(
    model | {'byte_fallback': fallback},
    added=added,
    normalizers=[*_normalizers(spec, extra), *_hide(special)],
    splits=splits,
    decoders=[
      *([{'type': 'ByteFallback'}] if fallback else []),
      {'type': 'Fuse'},
      *_blank_decoders(spec),
    ],
  )


def _normalizers(spec: Any, extra: Sequence[int]) -> Iterable[dict[str, Any]]:
  """What is done to a text, by the NormalizerSpec and the extra ids."""
  if extra:  # a sentinel is not normalized where its blank is spelled out
    numbers = '|'.join(map(str, extra))
    yield _replace(rf'{_BLANK}(?=<extra_id_(?:{numbers})>)', _KEPT)
  if 'nfkc' in spec.name:
    # Precompiled takes but one of two marks on a letter, and drops the other.
    yield {'type': 'NFC'}
  if spec.precompiled_charsmap:
    charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
    yield {'type': 'Precompiled', 'precompiled_charsmap': charsmap}
  if spec.remove_extra_whitespaces:
    yield _replace(rf'\A +|[ {_BLANK}]+\z|(?<= ) +', '')
  if spec.add_dummy_prefix:
    yield {'type': 'Prepend', 'prepend': _BLANK}
  yield _replace(rf'[ {_KEPT}]', _BLANK)


def _blank_decoders(spec: Any) -> Iterable[dict[str, Any]]:
  """Blanks of the output; at its beginning, those that were added go."""
  yield _replace(_BLANK, ' ')
  if spec.remove_extra_whitespaces:
    yield _replace(r'\A +', '')
  elif spec.add_dummy_prefix:
    yield _replace(r'\A ', '')


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
