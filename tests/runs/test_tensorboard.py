# SPDX-License-Identifier: Apache-2.0
"""Killed and resumed, TensorBoard shows every point once."""

import shutil

import pytest

from dsbs_jax.runs import metrics_log, tensorboard


def _log(folder, **options):
  return metrics_log.MetricsLog(folder, train_steps=100, **options)


def _write(log, *steps):
  for step in steps:
    log.train(step, {'loss': 1.0 / step, 'grad_norm': 2.0})
    log.evaluation(step, 'validation', {'accuracy': float(step)})


def _points(*steps):
  tags = ('train/grad_norm', 'train/loss', 'validation/accuracy')
  return sorted((step, tag) for step in steps for tag in tags)


def _read(folder):
  """All but the rates, which depend on the clock."""
  found = tensorboard.read(folder)
  return sorted(x for x in found if tensorboard.RATES not in x[1])


def test_every_line_is_in_the_file_at_once(tmp_path):
  log = _log(tmp_path)
  _write(log, 10, 20)  # a kill now would lose nothing
  assert _read(tmp_path) == _points(10, 20)
  log.close()


def _files(folder):
  return sorted(folder.glob('events.out.tfevents.*'))


@pytest.mark.parametrize('torn', [1, 20, 1000])
def test_a_kill_and_a_resume_leave_each_point_once(tmp_path, torn):
  log = _log(tmp_path)
  _write(log, 10, 20)
  whole = _files(tmp_path)[0].read_bytes()
  _write(log, 30, 40)
  (file,) = _files(tmp_path)
  content = file.read_bytes()
  assert len(content) > len(whole) + 20
  file.write_bytes(content[:-torn])  # at most all of them
  resumed = _log(tmp_path, start_step=20)
  assert _read(tmp_path) == _points(10, 20)
  _write(resumed, 30, 40, 50)
  assert _read(tmp_path) == _points(10, 20, 30, 40, 50)
  log.close()
  resumed.close()


def test_a_half_evaluated_step_has_its_points_once(tmp_path):
  """The kill came between the lines of a step, or between line and point."""
  log = _log(tmp_path)
  _write(log, 10)
  log.train(20, {'loss': 0.5, 'grad_norm': 2.0})
  before = (tmp_path / metrics_log.METRICS_FILE).read_text()
  log.evaluation(20, 'validation', {'accuracy': 20.0})
  log.close()
  shutil.copytree(tmp_path, tmp_path / 'point')
  for folder, text in ((tmp_path, None), (tmp_path / 'point', before)):
    if text is not None:  # the point without its line
      (folder / metrics_log.METRICS_FILE).write_text(text)
    resumed = _log(folder, start_step=20)
    if text is not None:
      assert (20, 'validation/accuracy') not in _read(folder)
      resumed.evaluation(20, 'validation', {'accuracy': 20.0})
    assert _read(folder) == _points(10, 20)
    resumed.close()


def test_points_that_older_versions_lost_are_added(tmp_path):
  log = _log(tmp_path)
  _write(log, 10, 20, 30)
  log.close()
  (file,) = _files(tmp_path)
  file.write_bytes(file.read_bytes()[:300])
  assert len(_read(tmp_path)) < 9
  _log(tmp_path, start_step=30).close()
  assert _read(tmp_path) == _points(10, 20, 30)


def test_tensorboard_reads_the_values(tmp_path):
  reader = pytest.importorskip(
    'tensorboard.backend.event_processing.event_accumulator'
  )
  log = _log(tmp_path)
  _write(log, 10, 20, 30)
  watched = reader.EventAccumulator(str(tmp_path))
  watched.Reload()  # has the file open while a run resumes
  resumed = _log(tmp_path, start_step=20)
  _write(resumed, 30)
  for board in (watched, reader.EventAccumulator(str(tmp_path))):
    board.Reload()
    points = board.Scalars('validation/accuracy')
    assert [(x.step, x.value) for x in points] == [(10, 10), (20, 20), (30, 30)]
  log.close()
  resumed.close()
