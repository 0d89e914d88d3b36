# SPDX-License-Identifier: Apache-2.0
"""What a Gemma's inputs are put into is said once: every verb knows it."""

import json

import pytest

from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.runs import self_description
from tests.claims import doors
from tests.data import gemma_vocabulary

START, END = (
  '<start_of_turn>user\n',
  '<end_of_turn>\n<start_of_turn>model\n',
)


@pytest.fixture
def tokenizer(tmp_path):
  """A SentencePiece model as Gemma's."""
  model = gemma_vocabulary.train(
    '[label] [rationale] Ann has 12 pens user model',
    model_type='bpe',
    vocab_size=330,
    byte_fallback=True,
  )
  file = tmp_path / 'gemma.model'
  file.write_bytes(model)
  return file


@pytest.mark.long
def test_turns_are_known_to_infer_and_to_the_exported_folder(
  tokenizer, small_data, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  done = doors.call(
    'dsbs_jax.train',
    *('--benchmark=svamp', '--student=gemma3_nano', '--input_format=turns'),
    *(f'--vocabulary={tokenizer}', f'--data_dir={small_data}', '--out=run'),
    *('--steps=2', '--batch=4', '--gin.EVAL_PERIOD=2', '--gin.EVAL_SPLITS=()'),
    '--gin.MAX_DECODE_LEN=8',
  )
  assert done.status == 0, done.stderr
  spec = self_description.training('run').fields['vocabulary']
  assert spec == f'{tokenizer}#turns'
  expected = vocabularies.load(spec).encode_inputs(['[label] Ann has 2 pens'])
  seen = []
  encode = vocabularies.Vocabulary.encode_inputs

  def noted(self, texts):
    seen.append(encode(self, texts))
    return seen[-1]

  monkeypatch.setattr(vocabularies.Vocabulary, 'encode_inputs', noted)
  (tmp_path / 'lines.txt').write_text('Ann has 2 pens\n')
  answers = []
  for folder in ('run', 'student'):
    if folder == 'student':
      done = doors.call(
        'dsbs_jax.export', 'run', '--format=hf', '--out=student'
      )
      assert done.status == 0, done.stderr
      fields = self_description.training('student').fields
      assert fields['vocabulary'] == 'student#turns'
      card = (tmp_path / 'student' / 'README.md').read_text()
      assert repr(f'{START}[label] ') in card and repr(END) in card
    seen.clear()
    done = doors.call(
      'dsbs_jax.infer', folder, 'lines.txt', f'--out={folder}.jsonl'
    )
    assert done.status == 0, done.stderr
    assert expected in seen
    (line,) = (tmp_path / f'{folder}.jsonl').read_text().splitlines()
    answers.append(json.loads(line)['label'])
  assert answers[0] == answers[1]
