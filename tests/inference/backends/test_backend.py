# SPDX-License-Identifier: Apache-2.0
"""Who computes: never another result in silence, never the slower one."""

import dataclasses
import json
import math

import jax
import pytest

from dsbs_jax.core import network
from dsbs_jax.inference import infer_file
from dsbs_jax.inference.backends import backend
from dsbs_jax.interop import ct2_model
from tests.inference import small_student, test_infer_file

WORK = backend.Work(
  model=small_student.MODEL,
  num_beams=1,
  mesh=None,
  generates=True,
  num_options=1,
)

GEMMA = network.GemmaConfig(
  vocab_size=64,
  emb_dim=8,
  num_heads=2,
  num_kv_heads=1,
  head_dim=4,
  mlp_dim=16,
  num_layers=1,
  window=4,
)


@pytest.fixture
def installed(monkeypatch):
  monkeypatch.setattr(ct2_model, 'is_installed', lambda: True)
  monkeypatch.setattr(ct2_model, 'version', lambda: '4.8.5')
  monkeypatch.setattr(jax, 'device_count', lambda: 1)


@pytest.mark.parametrize(
  ('changes', 'reason'),
  [
    ({}, None),
    ({'num_options': 0}, None),
    ({'num_options': 3}, None),
    ({'num_options': 4}, 'of many labels'),
    ({'generates': False}, 'labels are ranked'),
    ({'num_beams': 2}, 'NUM_BEAMS is 2'),
    ({'mesh': '1x1'}, 'there are several devices'),
    (
      {'model': dataclasses.replace(WORK.model, dtype='bfloat16')},
      "ACTIVATION_DTYPE is 'bfloat16'",
    ),
    ({'model': GEMMA}, 'the student is a gemma3'),
  ],
)
def test_auto_takes_what_is_faster_and_says_so(
  installed, capsys, changes, reason
):
  work = dataclasses.replace(WORK, **changes)
  chosen = backend.choose('auto', work)
  said = capsys.readouterr().err
  if reason is None:
    assert chosen == 'ct2' and '4.8.5, float32' in said
    assert "BACKEND='jax' for the built-in one" in said
  else:
    assert chosen == 'jax' and f'backend: built-in ({reason}' in said
  assert said.count('\n') == 1


def test_auto_stays_on_accelerators(installed, monkeypatch, capsys):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert backend.choose('auto', WORK) == 'jax'
  assert 'the platform is gpu' in capsys.readouterr().err


def test_without_it_nothing_is_said_and_nothing_changes(monkeypatch, capsys):
  monkeypatch.setattr(ct2_model, 'is_installed', lambda: False)
  assert backend.choose('auto', WORK) == 'jax'
  assert not capsys.readouterr().err
  for asked in ('ct2', 'ct2_int8'):
    with pytest.raises(ValueError, match='ctranslate2 is not installed'):
      backend.choose(asked, WORK)


def test_what_it_cannot_do_is_refused(installed):
  gemma = dataclasses.replace(WORK, model=GEMMA)
  with pytest.raises(ValueError, match='the student is a gemma3'):
    backend.choose('ct2_int8', gemma)
  beams = dataclasses.replace(WORK, num_beams=2)
  with pytest.raises(ValueError, match="BACKEND is 'ct2', but NUM_BEAMS is 2"):
    backend.choose('ct2', beams)
  many = dataclasses.replace(WORK, num_options=9, generates=False)
  assert backend.choose('ct2', many) == 'ct2'  # slower, but it was asked for
  assert backend.choose('ct2_int8', many) == 'ct2_int8'


def test_an_unknown_one_is_refused(tmp_path):
  with pytest.raises(ValueError, match="backend is 'onnx', expected one of"):
    test_infer_file.settings(tmp_path, "BACKEND = 'onnx'")


@pytest.fixture
def answer(tmp_path):
  """Answers the same lines by a backend; gives the lines of its file."""
  pytest.importorskip('ctranslate2', reason='extra ct2')
  (tmp_path / 'run').mkdir()
  small_student.write(tmp_path / 'run')
  texts = test_infer_file.TEXTS
  lines = [json.dumps({'id': i, 'input': x}) for i, x in enumerate(texts)]
  lines[3] = '{'
  (tmp_path / 'input').write_text('\n'.join(lines))

  def call(name, *bindings):
    asked = test_infer_file.settings(
      tmp_path, f'BACKEND = {name!r}', *bindings, benchmark='esnli'
    )
    asked = dataclasses.replace(asked, output=str(tmp_path / f'{name}.jsonl'))
    assert infer_file.infer(asked) == infer_file.ERRORS_STATUS
    return test_infer_file.answers(asked)

  return call


@pytest.mark.parametrize('task', ['dsbs', 'single', 'answer_first'])
@pytest.mark.parametrize('scored', [False, True])
def test_the_answers_files_are_alike(answer, task, scored):
  bindings = (
    f"MIXTURE_OR_TASK_NAME = 'esnli_gt_{task}'",
    f'SCORE_LABELS = {scored}',
    f'RATIONALES = {task == "dsbs" or not scored}',
  )
  ours, theirs = answer('jax', *bindings), answer('ct2', *bindings)
  for line, other in zip(ours, theirs, strict=True):
    assert line.keys() == other.keys()
    expected = line.pop('probability', 0.0)
    found = other.pop('probability', 0.0)
    assert line == other
    assert math.isclose(found, expected, rel_tol=2e-5, abs_tol=1e-9)


def test_a_file_is_not_continued_by_another_backend(answer, tmp_path):
  answer('jax')
  asked = test_infer_file.settings(
    tmp_path, "BACKEND = 'ct2'", benchmark='esnli'
  )
  with pytest.raises(ValueError, match="backend: None -> 'ct2'"):
    infer_file.infer(
      dataclasses.replace(asked, output=str(tmp_path / 'jax.jsonl'))
    )
