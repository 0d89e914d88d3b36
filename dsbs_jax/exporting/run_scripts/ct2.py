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

from dsbs_jax.exporting.run_scripts.text import Text, answer_lines


class Student(Text):
  """A greedy decoder of text.

  Args:
    folder: with model.bin and the files beside it.
    threads: 0 takes one per core. In int8 each computes a part of a batch,
      else they share its products.
  """

  def __init__(self, folder, threads=0):
    super().__init__(folder)
    file = pathlib.Path(folder) / 'shared_vocabulary.json'
    names = json.loads(file.read_text())
    self._names, self._ids = names, {name: i for i, name in enumerate(names)}
    threads = threads or os.cpu_count()
    self._parts = threads if 'int8' in self.settings['quantization'] else 1
    self._model = ctranslate2.Translator(
      str(folder),
      inter_threads=self._parts,
      intra_threads=threads // self._parts,
    )

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


def main():
  """Answers the lines of standard input in batches."""
  threads = [a[10:] for a in sys.argv[1:] if a.startswith('--threads=')]
  folder = pathlib.Path(__file__).resolve().parent
  answer_lines(Student(folder, int(threads[0]) if threads else 0))


if __name__ == '__main__':
  main()
