# SPDX-License-Identifier: Apache-2.0
"""Answers lines of text with the student in this folder: python run.py < lines

Needs jax, numpy, safetensors and sentencepiece, and nothing of the project that
trained the student. `--tokens` prints ids instead of text.
"""

import pathlib

import jax
import jax.export
import numpy as np
import safetensors.numpy

from dsbs_jax.exporting.run_scripts.text import Text, answer_lines


class Student(Text):
  """A greedy decoder of text."""

  def __init__(self, folder):
    super().__init__(folder)
    folder = pathlib.Path(folder)
    program = (folder / 'model.stablehlo').read_bytes()
    self._program = jax.export.deserialize(bytearray(program))
    self._params = jax.device_put(
      safetensors.numpy.load_file(folder / 'params.safetensors')
    )

  def encode(self, text):
    """Ids of one input, prefix and end included."""
    ids, limit = super().encode(text), self.settings['input_length']
    if len(ids) > limit:
      raise ValueError(
        f'an input has {len(ids)} tokens, expected at most {limit}: export'
        ' again with a larger --input_length, or shorten it.'
      )
    return ids

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


def main():
  """Answers the lines of standard input in batches."""
  answer_lines(Student(pathlib.Path(__file__).resolve().parent))


if __name__ == '__main__':
  main()
