# SPDX-License-Identifier: Apache-2.0
"""Answers lines of text with the student in this folder: python run.py < lines

Needs llama-cpp-python and sentencepiece, and nothing of the project that
trained the student. `--tokens` prints ids instead of text.
"""

import ctypes
import pathlib

import llama_cpp
import numpy as np

from dsbs_jax.exporting.run_scripts.text import Text, answer_lines


class Student(Text):
  """A greedy decoder of text.

  Args:
    folder: with model.gguf and the files beside it.
    length: tokens of an input or output at most.
  """

  def __init__(self, folder, length=2048):
    super().__init__(folder)
    # llama.cpp writes a page about every model that it loads.
    self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    path = f'{folder}/model.gguf'
    self._model = llama_cpp.llama_model_load_from_file(path.encode(), options)
    if not self._model:
      raise ValueError(f'{path} cannot be read by llama.cpp.')
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = length
    self._context = llama_cpp.llama_init_from_model(self._model, options)
    self._memory = llama_cpp.llama_get_memory(self._context)
    vocabulary = llama_cpp.llama_model_get_vocab(self._model)
    self._size = llama_cpp.llama_vocab_n_tokens(vocabulary)
    self._start = llama_cpp.llama_model_decoder_start_token(self._model)
    self._length = length

  def encode(self, text):
    """Ids of one input, prefix and end included."""
    ids = super().encode(text)
    if len(ids) > self._length:
      raise ValueError(f'an input has {len(ids)} tokens, over {self._length}.')
    return ids

  def _feed(self, step, ids):
    """Gives the model ids: `step` is llama_encode or llama_decode."""
    array = (llama_cpp.llama_token * len(ids))(*ids)
    batch = llama_cpp.llama_batch_get_one(array, len(ids))
    if step(self._context, batch):
      raise ValueError(f'llama.cpp failed at {len(ids)} tokens.')

  def generate(self, texts):
    """Output ids of inputs, one list each."""
    return [self._generate(self.encode(text)) for text in texts]

  def _generate(self, ids):
    llama_cpp.llama_memory_clear(self._memory, True)
    self._feed(llama_cpp.llama_encode, ids)
    output, token = [], self._start
    while len(output) < self.settings['output_length']:
      self._feed(llama_cpp.llama_decode, [token])
      logits = llama_cpp.llama_get_logits_ith(self._context, -1)
      logits = np.ctypeslib.as_array(logits, (self._size,))
      token = int(logits.argmax())
      if not np.isfinite(logits[token]):
        raise ValueError('the logits are not finite: damaged parameters.')
      output.append(token)
      if token == self.settings['eos_id']:
        break
    return output


def main():
  """Answers the lines of standard input, one by one."""
  folder = pathlib.Path(__file__).resolve().parent
  answer_lines(Student(folder), batch_size=1)


if __name__ == '__main__':
  main()
