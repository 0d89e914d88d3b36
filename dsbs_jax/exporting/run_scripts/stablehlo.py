# SPDX-License-Identifier: Apache-2.0
"""Answers lines of text with the student in this folder: python run.py < lines

Needs jax, numpy, safetensors and sentencepiece, and nothing of the project that
trained the student. `--tokens` prints ids instead of text.
"""

import json
import pathlib
import sys

import jax
import jax.export
import numpy as np
import safetensors.numpy


class Student:
  """A greedy decoder of text.

  Args:
    folder: with model.stablehlo and the files beside it.
  """

  def __init__(self, folder):
    folder = pathlib.Path(folder)
    self.settings = json.loads((folder / 'settings.json').read_text())
    program = (folder / 'model.stablehlo').read_bytes()
    self._program = jax.export.deserialize(bytearray(program))
    self._params = jax.device_put(
      safetensors.numpy.load_file(folder / 'params.safetensors')
    )
    self._pieces = None
    if self.settings['vocabulary'] != 'bytes':
      import sentencepiece

      self._pieces = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / self.settings['vocabulary'])
      )

  def encode(self, text):
    """Ids of one input, prefix and end included."""
    eos, ids = self.settings['eos_id'], []
    for part in (self.settings['prefix'] + text).split('</s>'):
      ids += [*self._encode_part(part), eos]
    limit = self.settings['input_length']
    if len(ids) > limit:
      raise ValueError(
        f'an input has {len(ids)} tokens, expected at most {limit}: export'
        ' again with a larger --input_length, or shorten it.'
      )
    return ids

  def _encode_part(self, text):
    if self._pieces is None:
      return [byte + 3 for byte in text.encode()]
    return self._pieces.encode(text)

  def decode(self, ids):
    """Text of output ids up to the end."""
    ids = [int(token) for token in ids]
    eos = self.settings['eos_id']
    ids = ids[: ids.index(eos)] if eos in ids else ids
    if self._pieces is None:
      kept = bytes(token - 3 for token in ids if 3 <= token < 259)
      return kept.decode('utf-8', errors='ignore')
    size, unknown = self.settings['num_text_ids'], self._pieces.unk_id()
    return self._pieces.decode([t for t in ids if t < size and t != unknown])

  def generate(self, texts):
    """Output ids [texts, L] of inputs; one batch."""
    ids = [self.encode(text) for text in texts]
    shape = (len(ids), self.settings['input_length'])
    tokens = np.full(shape, self.settings['pad_id'], np.int32)
    for row, own in zip(tokens, ids):  # noqa: B905
      row[: len(own)] = own
    outputs = np.asarray(self._program.call(self._params, tokens))
    if (outputs < 0).any():
      raise ValueError('the logits are not finite: the parameters are damaged.')
    return outputs

  def answer(self, texts):
    """Answers as text."""
    return [self.decode(row) for row in self.generate(texts)]


def main():
  """Answers the lines of standard input in batches."""
  student = Student(pathlib.Path(__file__).resolve().parent)
  sys.stdin.reconfigure(encoding='utf-8-sig', newline='\n')
  sys.stdout.reconfigure(encoding='utf-8')
  lines = [line.rstrip('\r\n') for line in sys.stdin]
  for first in range(0, len(lines), 64):
    batch = lines[first : first + 64]
    if '--tokens' in sys.argv[1:]:
      for row in student.generate(batch):
        print(json.dumps(row.tolist()))
    else:
      for text in student.answer(batch):
        print(' '.join(text.splitlines()))  # a line per input


if __name__ == '__main__':
  main()
