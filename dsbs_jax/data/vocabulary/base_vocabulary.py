# SPDX-License-Identifier: Apache-2.0
"""What all vocabularies share: end ids, and what stands around inputs."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from dsbs_jax import contract
from dsbs_jax.data.vocabulary import vocabulary_files

# Between a decoder's input and its target: in one sequence, the input's end id
# would say that the text is over.
INPUT_END = '\nAnswer: '
_TURN = re.compile(r'(<(?:start|end)_of_turn>)')


class Vocabulary:
  """Ids of texts; what all kinds share.

  Each has `encode_parts`, from texts that hold no `</s>` to their ids without
  an end id, and `decode_ids`, from ids below `num_text_ids` to text.

  Attributes:
    size: number of ids, extra ids included; a model's table may be larger.
    num_text_ids: ids from here on are extra ids, which have no text.
    unknown_text: how it is decoded, '' where it leaves no mark.
    fingerprint: hexadecimal digest of everything that decides the ids.
    input_start: ids before each input.
    input_end: ids behind each input, before which it is written.
    input_start_text: what stands before each input, as text.
    input_end_text: what stands behind it, '' for the end id.
  """

  input_start: tuple[int, ...] = ()
  input_end: tuple[int, ...] = (contract.EOS_ID,)
  unknown_text: str = ''
  input_start_text: str = ''
  input_end_text: str = ''
  size: int
  num_text_ids: int
  unk: int
  fingerprint: str

  def encode(self, text: str) -> list[int]:
    """Ids of one text, without an end id."""
    return self.encode_all([text])[0]

  def encode_inputs(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of many inputs, with what stands before and behind them."""
    return [
      [*self.input_start, *ids, *self.input_end]
      for ids in self.encode_all(texts)
    ]

  def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
    """Decoder ids of many texts, EOS_ID last."""
    return [[*ids, contract.EOS_ID] for ids in self.encode_all(texts)]

  def put_inputs_into(self, input_format: str) -> list[bytes]:
    """Sets what stands around inputs, for a decoder's vocabulary.

    Args:
      input_format: of a spec; '' for INPUT_END behind inputs.

    Returns:
      What the fingerprint has to hold of it.
    """
    known = vocabulary_files.INPUT_FORMATS
    place = vocabulary_files.INPUT_PLACE
    template = known.get(input_format, input_format) or place + INPUT_END
    start, _, end = template.partition(place)
    self.input_start_text, self.input_end_text = start, end
    self.input_start = (contract.BOS_ID, *self._encode_turns(start))
    self.input_end = tuple(self._encode_turns(end))
    return [end.encode(), start.encode()] if start else [end.encode()]

  def _encode_turns(self, text: str) -> list[int]:
    """Ids of a text, in which the markers of turns are single ids."""
    ids = []
    for part in filter(None, _TURN.split(text)):
      token = self.token(part) if _TURN.fullmatch(part) else None
      ids += self.encode_parts([part])[0] if token is None else [token]
    return ids

  def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of many texts, without end ids; `</s>` inside becomes EOS_ID."""
    parts = [text.split(vocabulary_files.EOS_TEXT) for text in texts]
    flat = iter(self.encode_parts([piece for text in parts for piece in text]))
    joined = []
    for text in parts:
      ids = list(next(flat))
      for _ in text[1:]:
        ids += [contract.EOS_ID, *next(flat)]
      joined.append(ids)
    return joined

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids up to the first end id, without special ones."""
    return self.decode_ids([i for i in self._until_end(ids) if i != self.unk])

  def decode_with_unknown(self, ids: Iterable[int]) -> str:
    """As `decode`, but an unknown id may leave a mark."""
    return self.decode_ids(list(self._until_end(ids)))

  def _until_end(self, ids: Iterable[int]) -> Iterator[int]:
    before = itertools.takewhile(lambda i: i != contract.EOS_ID, map(int, ids))
    return (token for token in before if token < self.num_text_ids)

  def without_unknown(self, text: str) -> str:
    """Takes what stands for unknown ids out of a decoded text."""
    unknown = self.unknown_text
    if not unknown:
      return text
    known = text.replace(unknown, '')
    # The blank before a word is no blank where the word is the first.
    return known.removeprefix(' ') if text.startswith(unknown) else known
