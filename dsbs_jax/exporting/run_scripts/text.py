# SPDX-License-Identifier: Apache-2.0
"""What the scripts of all engines share; an export puts it into run.py."""

import itertools
import json
import pathlib
import sys


class Text:
  """Text to ids and back, by settings.json and the vocabulary of a folder."""

  def __init__(self, folder):
    folder = pathlib.Path(folder)
    self.settings = json.loads((folder / 'settings.json').read_text())
    self._pieces = self._tokenizer = None
    file = str(folder / self.settings['vocabulary'])
    if file.endswith('.model'):
      import sentencepiece

      self._pieces = sentencepiece.SentencePieceProcessor(model_file=file)
    elif file.endswith('.json'):
      import tokenizers

      self._tokenizer = tokenizers.Tokenizer.from_file(file)
      self._tokenizer.no_truncation()  # the file may keep a caller's
      self._tokenizer.no_padding()

  def encode(self, text):
    """Ids of one input, prefix and end included."""
    ids = []
    for part in (self.settings['prefix'] + text).split('</s>'):
      ids += [*self._encode_part(part), self.settings['eos_id']]
    return ids

  def _encode_part(self, text):
    if self._pieces is not None:
      return self._pieces.encode(text)
    if self._tokenizer is not None:
      return self._tokenizer.encode(text, add_special_tokens=False).ids
    return [byte + 3 for byte in text.encode()]

  def decode(self, ids):
    """Text of output ids up to the end."""
    ids, eos = [int(i) for i in ids], self.settings['eos_id']
    ids = ids[: ids.index(eos)] if eos in ids else ids
    if self._pieces is not None:
      size, unknown = self.settings['num_text_ids'], self._pieces.unk_id()
      return self._pieces.decode([i for i in ids if i < size and i != unknown])
    if self._tokenizer is not None:
      unknown = self.settings['unk_id']
      return self._tokenizer.decode([i for i in ids if i != unknown])
    kept = bytes(i - 3 for i in ids if 3 <= i < 259)
    return kept.decode('utf-8', errors='ignore')

  def answer(self, texts):
    """Answers as text."""
    return [self.decode(ids) for ids in self.generate(texts)]


def answer_lines(student, batch_size=64):
  """Answers the lines of standard input; `--tokens` prints ids, not text."""
  sys.stdin.reconfigure(encoding='utf-8-sig', newline='\n')
  sys.stdout.reconfigure(encoding='utf-8')
  lines = (line.rstrip('\r\n') for line in sys.stdin)
  while batch := list(itertools.islice(lines, batch_size)):
    for ids in student.generate(batch):
      text = ' '.join(student.decode(ids).splitlines())  # a line per input
      tokens = json.dumps([int(i) for i in ids])
      print(tokens if '--tokens' in sys.argv else text)
