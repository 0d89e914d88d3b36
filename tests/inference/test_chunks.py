# SPDX-License-Identifier: Apache-2.0
"""A chunk_size is all that is in memory; a file goes on where it was broken off."""

import io
import json

import pytest

from dsbs_jax.inference import answer_file, chunks, input_lines, predictor
from dsbs_jax.runtime import signals


class Lines:
  """A file of 3,000 lines that counts how many were read."""

  def __init__(self):
    self.num_read = 0

  def readline(self, limit):
    del limit
    if self.num_read == 3_000:
      return b''
    self.num_read += 1
    return b'line %d\n' % self.num_read


class Parrot:
  """Predicts the text of each input."""

  def num_tokens(self, inputs):
    return [1] * len(inputs)

  def predict_batches(self, inputs):
    for i in reversed(range(len(inputs))):
      yield [i], [predictor.Prediction(inputs[i].text, 0.5)]


class Counting:
  """Checks after every chunk how far reading is ahead of writing."""

  num_lines = num_errors = 0

  def __init__(self, file):
    self.file, self.lines, self.ahead = file, [], []

  def note_input(self, content):
    self.ahead.append(self.file.num_read - len(self.lines))

  def check_in_place(self):
    """It lies in memory."""

  def append(self, lines):
    self.lines += [line['label'] for line in lines]

  def check_end(self):
    assert len(self.lines) == self.file.num_read


def test_no_more_than_a_window_is_in_memory():
  file = Lines()
  answers = Counting(file)
  chunks.predict_lines(
    input_lines.read_lines(file, 'lines'),
    Parrot(),
    answers,
    input_name='lines',
    chunk_size=128,
    max_input_len=9,
    stop=signals.StopRequest(),
  )
  assert answers.lines == [f'line {i + 1}' for i in range(3_000)]
  assert max(answers.ahead) == 128


def test_what_compiling_took_is_not_in_the_rate(tmp_path, monkeypatch):
  now = [0.0]

  class Compiling(Parrot):
    def predict_batches(self, inputs):
      for i, answered in enumerate(super().predict_batches(inputs)):
        now[0] += 2.0 if i else 3600.0
        yield answered

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  path = tmp_path / 'lines'
  path.write_bytes(b'a line\n' * 5)
  shown = Terminal()
  monkeypatch.setattr('sys.stderr', shown)
  monkeypatch.setattr(chunks.time, 'monotonic', lambda: now[0])
  with path.open('rb') as file:
    chunks.predict_lines(
      input_lines.read_lines(file, str(path)),
      Compiling(),
      answer_file.AnswerFile(tmp_path / 'answers', {}),
      input_name=str(path),
      chunk_size=9,
      max_input_len=9,
      stop=signals.StopRequest(),
    )
  first, second, *_, last = shown.getvalue().split('\r')[1:]
  assert first == '1 lines answered'
  assert second.rstrip() == '2 lines answered  0.5 lines/s  ETA 0:00:06'
  assert last.rstrip() == '5 lines answered  0.5 lines/s  ETA 0:00:00'


def answer(path, lines, *, chunk_size=8, **settings):
  """Answers lines into a file, as the command does."""
  content = ''.join(f'{line}\n' for line in lines).encode()
  answers = answer_file.AnswerFile(path, settings)
  try:
    return chunks.predict_lines(
      input_lines.read_lines(io.BytesIO(content), 'lines'),
      Parrot(),
      answers,
      input_name='lines',
      chunk_size=chunk_size,
      max_input_len=9,
      stop=signals.StopRequest(),
    )
  finally:
    answers.close()


def labels(path):
  return [json.loads(line)['label'] for line in path.read_text().splitlines()]


TEXTS = [f'line {i}' for i in range(30)]


def test_more_lines_are_taken_up_and_other_ones_refused(tmp_path):
  path = tmp_path / 'out'
  for num in (20, 30):
    assert answer(path, TEXTS[:num]) == num
    assert labels(path) == TEXTS[:num]
  with pytest.raises(ValueError, match='first 30 lines of the input are not'):
    answer(path, ['new', *TEXTS[1:]])
  with pytest.raises(ValueError, match='has 9 lines, expected at least'):
    answer(path, TEXTS[:9])
  with pytest.raises(ValueError, match='model: None -> 2'):
    answer(path, TEXTS, model=2)
  assert labels(path) == TEXTS


@pytest.mark.parametrize('torn', [b'', b'{"line": 1', b'{"line": 14}'])
def test_a_torn_line_is_answered_again(tmp_path, torn):
  path = tmp_path / 'out'
  answer(path, TEXTS)
  whole = path.read_bytes()
  path.write_bytes(b''.join(whole.splitlines(True)[:13]) + torn)
  answer(path, TEXTS, chunk_size=5)
  assert path.read_bytes() == whole


def test_files_of_others_are_left_alone(tmp_path):
  path = tmp_path / 'out'
  path.write_text('mine\n')
  with pytest.raises(ValueError, match='expected a file that this command'):
    answer(path, TEXTS)
  assert path.read_text() == 'mine\n'
  path.unlink()
  answer(path, TEXTS)
  path.write_bytes(path.read_bytes().split(b'\n', 1)[1])
  with pytest.raises(ValueError, match='not the answer to line 1'):
    answer(path, TEXTS)


def test_two_processes_cannot_write_one_file(tmp_path):
  held = answer_file.AnswerFile(tmp_path / 'out', {})
  with pytest.raises(ValueError, match='written by another process'):
    answer(tmp_path / 'out', TEXTS)
  held.close()
  assert answer(tmp_path / 'out', TEXTS) == 30


def test_a_line_may_be_anything():
  content = b'\xef\xbb\xbffirst\r\n{"not": json\n\xff\nlast'
  read = list(input_lines.read_lines(io.BytesIO(content), 'in'))
  texts = [getattr(line.input, 'text', None) for line in read]
  assert texts == ['first', '{"not": json', None, 'last']
  assert 'in:3 has the byte 0xff' in read[2].input.reason
  content = b'{"input": "\\ud800"}\n[]\n{"input": 3}\n{"input": "a"}'
  *wrong, right = input_lines.read_lines(io.BytesIO(content), 'in')
  reasons = [line.input.reason for line in wrong]
  for reason, part in zip(
    reasons, ('lone surrogate', 'a JSON object', 'not all text'), strict=True
  ):
    assert part in reason
  assert right.input.text == 'a'


def test_an_answer_that_was_cut_says_so():
  class Cutting(Parrot):
    def predict_batches(self, inputs):
      yield (
        range(len(inputs)),
        [
          predictor.Prediction(one.text, 0.5, cut='long' in one.text)
          for one in inputs
        ],
      )

  written = io.BytesIO()
  chunks.predict_lines(
    input_lines.read_lines(io.BytesIO(b'long\nshort\n'), '-'),
    Cutting(),
    answer_file.AnswerStream(written),
    input_name='-',
    chunk_size=2,
    max_input_len=1,
    stop=signals.StopRequest(),
  )
  first, second = map(json.loads, written.getvalue().splitlines())
  assert first == {'line': 1, 'label': 'long', 'probability': 0.5, 'cut': True}
  assert second == {'line': 2, 'label': 'short', 'probability': 0.5}
