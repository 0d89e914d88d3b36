# SPDX-License-Identifier: Apache-2.0
"""Answers lines of text with the student in this folder: python run.py < lines

Needs ctranslate2 and what reads the vocabulary, sentencepiece or tokenizers,
and nothing of the project that trained the student. `--tokens` prints ids
instead of text, `--threads=4` sets the threads (default: one per core).
"""

import json
import math
import os
import pathlib
import sys

import ctranslate2


class Student:
  """A greedy decoder of text.

  Args:
    folder: with model.bin and the files beside it.
    threads: 0 takes one per core. In int8 each computes a part of a batch,
      else they share its products.
  """

  def __init__(self, folder, threads=0):
    folder = pathlib.Path(folder)
    self.settings = json.loads((folder / 'settings.json').read_text())
    names = json.loads((folder / 'shared_vocabulary.json').read_text())
    self._names, self._ids = names, {name: i for i, name in enumerate(names)}
    threads = threads or os.cpu_count()
    self._parts = threads if 'int8' in self.settings['quantization'] else 1
    self._model = ctranslate2.Translator(
      str(folder),
      inter_threads=self._parts,
      intra_threads=threads // self._parts,
    )
    self._pieces = self._tokenizer = None
    vocabulary = self.settings['vocabulary']
    if vocabulary.endswith('.model'):
      import sentencepiece

      self._pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / vocabulary)
      )
    elif vocabulary.endswith('.json'):
      import tokenizers

      self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / vocabulary))
      self._tokenizer.no_truncation()  # the file may keep a caller's
      self._tokenizer.no_padding()

  def encode(self, text):
    """Ids of one input, prefix and end included."""
    eos, ids = self.settings['eos_id'], []
    for part in (self.settings['prefix'] + text).split('</s>'):
      ids += [*self._encode_part(part), eos]
    return ids

  def _encode_part(self, text):
    if self._pieces is not None:
      return self._pieces.encode(text)
    if self._tokenizer is not None:
      return self._tokenizer.encode(text, add_special_tokens=False).ids
    return [byte + 3 for byte in text.encode()]

  def decode(self, ids):
    """Text of output ids up to the end."""
    eos, unknown = self.settings['eos_id'], self.settings['unk_id']
    ids = ids[: ids.index(eos)] if eos in ids else ids
    if self._tokenizer is not None:
      return self._tokenizer.decode([i for i in ids if i != unknown])
    ids = [i for i in ids if i < self.settings['num_text_ids']]
    if self._pieces is not None:
      return self._pieces.decode([i for i in ids if i != unknown])
    kept = bytes(i - 3 for i in ids if 3 <= i < 259)
    return kept.decode('utf-8', errors='ignore')

  def generate(self, texts):
    """Output ids of inputs, one list each; one batch."""
    results = self._model.translate_batch(
      [[self._names[i] for i in self.encode(text)] for text in texts],
      max_batch_size=-(-len(texts) // self._parts),
      beam_size=1,
      max_input_length=0,
      min_decoding_length=0,
      max_decoding_length=self.settings['output_length'],
      return_end_token=True,
      return_scores=True,
    )
    if not all(math.isfinite(result.scores[0]) for result in results):
      raise ValueError('the logits are not finite: the parameters are damaged.')
    return [[self._ids[x] for x in row.hypotheses[0]] for row in results]

  def answer(self, texts):
    """Answers as text."""
    return [self.decode(ids) for ids in self.generate(texts)]


def main():
  """Answers the lines of standard input in batches."""
  threads = [a[10:] for a in sys.argv[1:] if a.startswith('--threads=')]
  student = Student(
    pathlib.Path(__file__).resolve().parent, int(threads[0]) if threads else 0
  )
  sys.stdin.reconfigure(encoding='utf-8-sig', newline='\n')
  sys.stdout.reconfigure(encoding='utf-8')
  lines = [line.rstrip('\r\n') for line in sys.stdin]
  for first in range(0, len(lines), 64):
    batch = lines[first : first + 64]
    if '--tokens' in sys.argv[1:]:
      for ids in student.generate(batch):
        print(json.dumps(ids))
    else:
      for text in student.answer(batch):
        print(' '.join(text.splitlines()))  # a line per input


if __name__ == '__main__':
  main()
