# SPDX-License-Identifier: Apache-2.0
"""Every line is answered once, in order, by what the student really says."""

import dataclasses
import json
import os
import pathlib
import re
import signal

import pytest

from dsbs_jax import contract
from dsbs_jax.inference import answer_file, infer_file, predictor
from dsbs_jax.runtime import signals
from dsbs_jax.runtime.configuration import gin_config
from tests.inference import small_student

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SMALL = {
  **small_student.MACROS,
  'EVAL_BATCH_SIZE': 8,
  'CHUNK_SIZE': 16,
  'MAX_INPUT_LEN': 64,
}
TEXTS = [f'{"very " * (i % 3)}odd {i}?' for i in range(40)]


def settings(folder, *bindings, benchmark='svamp'):
  return gin_config.build(
    infer_file.InferConfig,
    gin_files=[
      'gin/infer.gin',
      'gin/models/nano.gin',
      f'gin/benchmarks/{benchmark}.gin',
    ],
    gin_bindings=[
      f"CHECKPOINT_PATH = '{folder / 'run'}'",
      f"INPUT = '{folder / 'input'}'",
      f"OUTPUT = '{folder / 'output'}'",
      *(f'{name} = {value!r}' for name, value in SMALL.items()),
      *bindings,
    ],
    search_paths=[str(REPOSITORY)],
  )


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  folder = tmp_path_factory.mktemp('student')
  small_student.write(folder)
  return folder


@pytest.fixture
def make(tmp_path, checkpoint):
  """Writes the input and returns the settings for it."""
  (tmp_path / 'run').symlink_to(checkpoint)

  def make(lines, *bindings, **options):
    text = ''.join(f'{line}\n' for line in lines)
    (tmp_path / 'input').write_text(text)
    return settings(tmp_path, *bindings, **options)

  return make


def answers(run):
  output = pathlib.Path(run.output).read_text()
  return [json.loads(line) for line in output.splitlines()]


def test_lines_are_answered_in_order_and_errors_keep_their_place(make):
  rows = [json.dumps({'id': f'q{i}', 'input': t}) for i, t in enumerate(TEXTS)]
  rows[3] = '{"id": "q3", "input"'
  rows[5] = '{"id": "q5", "question": "odd?"}'
  rows[20] = json.dumps({'id': 'q20', 'input': 'long ' * 40})
  rows[39] = ''
  run = make(rows)
  assert infer_file.infer(run) == infer_file.ERRORS_STATUS
  given = answers(run)
  assert [entry['line'] for entry in given] == list(range(1, 41))
  wrong = {i for i, entry in enumerate(given) if 'error' in entry}
  assert wrong == {3, 5, 20, 39}
  assert 'input:4 reads' in given[3]['error']
  assert "no field 'input'" in given[5]['error'] and given[5]['id'] == 'q5'
  assert 'MAX_INPUT_LEN' in given[20]['error']
  for i in set(range(40)) - wrong:
    ended = {name: value for name, value in given[i].items() if name != 'cut'}
    assert set(ended) == {'line', 'id', 'label', 'probability'}
    assert given[i]['id'] == f'q{i}'
  # Order is shown by what was said: no two inputs are equal.
  said = [entry['probability'] for entry in given if 'error' not in entry]
  assert len(set(said)) == len(said)


def test_a_row_that_is_too_long_is_named_by_its_line(make, tmp_path):
  run = make([])
  path = tmp_path / 'rows.csv'
  long = 'long ' * 40
  path.write_text(f'input\n"two\nlines"\n{long}\nodd?\n')
  run = dataclasses.replace(run, input=str(path))
  assert infer_file.infer(run) == infer_file.ERRORS_STATUS
  first, wrong, last = answers(run)
  assert 'label' in first and 'label' in last
  # Its second row, on the fourth line.
  assert wrong['line'] == 2
  assert wrong['error'].startswith(f'{path}:4 has ')


def test_a_table_that_needs_a_benchmark_is_one_error(make, tmp_path):
  path = tmp_path / 'rows.csv'
  path.write_text('question,answer\nodd?,yes\n')
  run = dataclasses.replace(make([]), input=str(path))
  with pytest.raises(contract.UserError, match='columns question, answer'):
    infer_file.infer(run)
  assert not pathlib.Path(run.output).exists()


def test_choices_of_a_row_are_a_closed_set(make):
  rows = REPOSITORY / 'tests/data/fixtures/archive/cqa/cqa_test.json'
  lines = rows.read_text().splitlines()
  run = make(lines, "BENCHMARK = 'cqa'", 'SCORE_LABELS = True', benchmark='cqa')
  # Choices make rows longer than the other tests' inputs.
  run = dataclasses.replace(run, max_input_len=512)
  assert infer_file.infer(run) == 0
  for line, entry in zip(lines, answers(run), strict=True):
    assert entry['label'] in json.loads(line)['choices']
    assert entry['id'] == json.loads(line)['id']
    assert 0.2 <= entry['probability'] <= 1.0


def test_neighbours_and_padding_change_no_answer(make):
  run = make(TEXTS)
  infer_file.infer(run)
  together = answers(run)[6]
  run = dataclasses.replace(run, output=run.output + '.alone')
  pathlib.Path(run.input).write_text(TEXTS[6])
  infer_file.infer(run)
  (alone,) = answers(run)
  assert alone['label'] == together['label']
  assert alone['probability'] == pytest.approx(together['probability'], 1e-4)


def test_a_killed_run_ends_byte_for_byte_as_an_unbroken_one(make, monkeypatch):
  run = make(TEXTS)
  assert infer_file.infer(run) == 0
  whole = pathlib.Path(run.output).read_bytes()
  broken = dataclasses.replace(run, output=run.output + '.broken')
  predict_batches = predictor.Predictor.predict_batches

  def dying(self, inputs):
    for number, batch in enumerate(predict_batches(self, inputs)):
      if inputs[0].text == TEXTS[16] and number == 1:
        raise KeyboardInterrupt
      yield batch

  with monkeypatch.context() as patched:
    patched.setattr(predictor.Predictor, 'predict_batches', dying)
    with pytest.raises(KeyboardInterrupt):
      infer_file.infer(broken)
  output = pathlib.Path(broken.output)
  assert output.read_bytes() == b''.join(whole.splitlines(True)[:16])
  # Killed while it wrote: whole lines, and the beginning of one more.
  lines = whole.splitlines(True)
  for kept in (0, 16, 21):
    output.write_bytes(b''.join(lines[:kept]) + lines[kept][:9])
    assert infer_file.infer(broken) == 0
    assert output.read_bytes() == whole
  before = output.stat().st_mtime_ns
  assert infer_file.infer(broken) == 0
  assert output.stat().st_mtime_ns == before


@pytest.fixture
def at_second_chunk(monkeypatch):
  """Does something while the second chunk of 16 lines is predicted."""

  def at_second_chunk(do):
    predict_batches = predictor.Predictor.predict_batches

    def doing(self, inputs):
      if inputs[0].text == TEXTS[16]:
        do()
      return predict_batches(self, inputs)

    monkeypatch.setattr(predictor.Predictor, 'predict_batches', doing)

  return at_second_chunk


def _replace(path):
  path.with_name('other').write_text('{"line": 1}')
  path.with_name('other').replace(path)


@pytest.mark.parametrize('take', [pathlib.Path.unlink, _replace])
def test_an_output_that_is_taken_away_ends_the_work(
  make, at_second_chunk, monkeypatch, take
):
  run = make(TEXTS)
  assert infer_file.infer(run) == 0
  output = pathlib.Path(run.output)
  whole = output.read_bytes()
  output.unlink()
  with monkeypatch.context():
    at_second_chunk(lambda: take(output))
    with pytest.raises(ValueError, match='removed or replaced .* 16 lines are'):
      infer_file.infer(run)
  monkeypatch.undo()
  if take is _replace:
    assert output.read_text() == '{"line": 1}'
  output.unlink(missing_ok=True)
  assert infer_file.infer(run) == 0
  assert output.read_bytes() == whole


def test_an_output_that_is_taken_away_at_the_end_is_missed(make, monkeypatch):
  run = make(TEXTS[:20])
  append = answer_file.AnswerFile.append

  def append_and_take(self, lines):
    append(self, lines)
    if self.num_lines == 20:
      os.unlink(run.output)

  monkeypatch.setattr(answer_file.AnswerFile, 'append', append_and_take)
  with pytest.raises(ValueError, match='its 20 lines are gone'):
    infer_file.infer(run)


@pytest.mark.parametrize('edit', ['in place', 'by rename', 'cut'])
def test_an_input_that_changes_under_the_work_is_no_success(
  make, at_second_chunk, edit
):
  run = make(TEXTS)
  path = pathlib.Path(run.input)
  text = path.read_text()

  def change():
    if edit == 'in place':
      path.write_text(text.replace('odd 3?', 'odd !?'))
    elif edit == 'by rename':
      path.with_name('other').write_text(text.replace('odd 3?', 'odd !?'))
      path.with_name('other').replace(path)
    else:
      path.write_text(text[:50])

  at_second_chunk(change)
  with pytest.raises(
    ValueError, match='the input has changed while it was read'
  ):
    infer_file.infer(run)


def test_lines_that_come_while_others_are_answered_are_welcome(
  make, at_second_chunk
):
  run = make(TEXTS)
  path = pathlib.Path(run.input)

  def add():
    with path.open('a') as file:
      file.write('one more?\n')

  at_second_chunk(add)
  assert infer_file.infer(run) == 0
  # At the latest the same command answers them.
  assert infer_file.infer(run) == 0
  assert len(answers(run)) in (41, 42)


def test_other_settings_are_refused(make):
  run = make(TEXTS[:20])
  infer_file.infer(run)
  changed = dataclasses.replace(run, max_decode_len=3)
  with pytest.raises(ValueError, match='max_decode_len: 4 -> 3'):
    infer_file.infer(changed)


def test_a_signal_stops_after_the_batch(make, monkeypatch):
  run = make(TEXTS)
  predict_batches = predictor.Predictor.predict_batches

  def signalled(self, inputs):
    if inputs[0].text == TEXTS[16]:
      os.kill(os.getpid(), signal.SIGTERM)
    return predict_batches(self, inputs)

  with monkeypatch.context() as patched:
    patched.setattr(predictor.Predictor, 'predict_batches', signalled)
    assert infer_file.infer(run) == signals.INTERRUPTED_STATUS
  assert len(answers(run)) == 16
  assert infer_file.infer(run) == 0
  assert len(answers(run)) == 40


@pytest.mark.parametrize(
  ('binding', 'reason'),
  [
    ("MIXTURE_OR_TASK_NAME = 'svamp_rationale'", 'no label to predict'),
    ("ID_FIELDS = ('label',)", 'ID_FIELDS names'),
    ('CHUNK_SIZE = 0', 'chunk_size is 0'),
  ],
)
def test_impossible_settings_are_refused(make, binding, reason):
  with pytest.raises(ValueError, match=reason):
    make([], binding)


def test_free_labels_cannot_be_scored(make):
  run = make(TEXTS[:1], 'SCORE_LABELS = True')
  with pytest.raises(ValueError, match='no closed set'):
    infer_file.infer(run)


def test_shared_macros_have_the_defaults_of_evaluation():
  def macros(name):
    text = (REPOSITORY / 'gin' / name).read_text()
    return dict(re.findall(r'^([A-Z][A-Z_]*) = (.*)$', text, re.MULTILINE))

  for other in ('eval.gin', 't5x/infer.gin'):
    ours, theirs = macros('infer.gin'), macros(other)
    # Ours comes from the vocabulary; T5X's is that of the public one.
    shared = (set(ours) & set(theirs)) - {'VOCAB_SIZE'}
    assert len(shared) > 7
    assert {key: ours[key] for key in shared} == {
      key: theirs[key] for key in shared
    }
