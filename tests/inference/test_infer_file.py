# SPDX-License-Identifier: Apache-2.0
"""Every line is answered once, in order, by what the student really says."""

import dataclasses
import json
import os
import pathlib
import re
import signal

import pytest

from dsbs_jax.inference import infer_file, predictor
from dsbs_jax.runtime import gin_config, signals
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
    assert set(given[i]) == {'line', 'id', 'label', 'probability'}
    assert given[i]['id'] == f'q{i}'
  # Order is shown by what was said: no two inputs are equal.
  said = [entry['probability'] for entry in given if 'error' not in entry]
  assert len(set(said)) == len(said)


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
