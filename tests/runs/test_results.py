# SPDX-License-Identifier: Apache-2.0
"""A run is finished only when nothing of its last step is missing."""

import json
import math

import pytest

from dsbs_jax.data.prepared import dataset_writer
from dsbs_jax.runs import checkpoint_folders, results, run_folder
from tests.data import small_prepared


def _lines(path):
  return (path / 'metrics.jsonl').read_text().splitlines(keepends=True)


def _finished(path, splits=('validation', 'test'), train_steps=20):
  return run_folder.is_finished(path, train_steps=train_steps, splits=splits)


def test_a_run_that_still_holds_its_folder_is_not_finished(make_run):
  """Nor is one that was killed at the very end: its scores are not saved."""
  path = make_run()
  (path / run_folder.LOCK_FILE).touch()
  assert not _finished(path)


def test_a_whole_run_is_finished(make_run):
  assert _finished(make_run())


@pytest.mark.parametrize('missing', [1, 2, 3])
def test_a_run_without_a_line_of_its_last_step_is_not(make_run, missing):
  path = make_run()
  (path / 'metrics.jsonl').write_text(''.join(_lines(path)[:-missing]))
  assert not _finished(path)


def test_a_torn_last_line_does_not_count(make_run):
  path = make_run()
  (path / 'metrics.jsonl').write_text(''.join(_lines(path)).rstrip('\n'))
  assert not _finished(path)


def test_a_run_whose_last_checkpoint_is_missing_is_not(make_run):
  path = make_run()
  (path / 'checkpoint_20').rename(path / 'checkpoint_10')
  assert not _finished(path)


def test_a_checkpoint_still_being_written_does_not_count(make_run):
  path = make_run()
  (path / 'checkpoint_20').rename(path / 'checkpoint_20.orbax-checkpoint-tmp')
  assert not _finished(path)
  assert not checkpoint_folders.folders(path)


def test_checkpoints_removed_to_save_space_do_not_matter(make_run):
  assert _finished(make_run(saved=False))


def test_more_steps_than_before_are_not_finished(make_run):
  assert not _finished(make_run(), train_steps=40)


def test_an_empty_folder_is_not_finished(tmp_path):
  assert not _finished(tmp_path)


def test_a_run_is_read_as_it_was_written(make_run):
  path = make_run(fraction=0.25, seed=2)
  run = results.read(path)
  assert run.finished
  assert (run.coordinates.fraction, run.coordinates.seed) == (0.25, 2)
  assert run.macros['MIXTURE_OR_TASK_NAME'] == 'cqa_gt_dsbs'
  assert run.macros['LAYOUT'] == '@layouts.Packed'
  assert run.trained[10]['label/loss'] == 0.1
  assert run.accuracy('test', 20) == 21.0


def test_parameters_are_counted_as_the_model_has_them(make_run):
  d, h, k, f, v = 16, 2, 8, 32, 64
  attention = 4 * d * h * k
  mlp = 3 * d * f
  encoder = attention + mlp + 2 * d + 32 * h + d
  decoder = 2 * attention + mlp + 3 * d + 32 * h + d
  run = results.read(make_run())
  assert run.num_params == 2 * v * d + encoder + decoder


def test_validation_chooses_and_test_is_not_looked_at(make_run):
  run = results.read(
    make_run(validation=(10.0, 30.0, 20.0), test=(99.0, 1.0, 50.0))
  )
  assert run.best_step == 20
  assert run.accuracy('test', run.best_step) == 1.0


def test_the_newest_of_equally_good_steps_is_best(make_run):
  run = results.read(make_run(validation=(30.0, 30.0), test=(1.0, 2.0)))
  assert run.best_step == 20


@pytest.mark.parametrize('best', [0, 1, 2])
def test_an_accuracy_that_is_no_number_is_none(make_run, best):
  values = [math.nan] * 3
  values[best] = 30.0
  run = results.read(make_run(validation=values, test=(1.0, 2.0, math.nan)))
  assert run.best_step == 10 * (best + 1)
  assert run.accuracy('test', 30) is None
  assert run.accuracy('test', 20) == 2.0


def test_without_validation_the_last_step_is_chosen(make_run):
  run = results.read(make_run(validation=(), test=(9.0, 1.0)))
  assert run.best_step is None
  assert run.chosen_step == 20


def test_a_folder_named_by_hand_is_known_by_its_config(make_run):
  run = results.read(make_run(name='my first run', seed=4))
  assert (run.coordinates.benchmark, run.coordinates.seed) == ('cqa', 4)
  assert run.coordinates.model == results.size_text(run.num_params)


def test_a_name_that_contradicts_the_config_is_an_error(make_run):
  path = make_run(name='cqa_gt_finetune-tiny-f1-s0', method='gt_dsbs')
  with pytest.raises(ValueError, match='Rename the folder'):
    results.read(path)


def test_a_damaged_line_names_its_place(make_run):
  path = make_run()
  lines = _lines(path)
  lines[1] = '{"step": 10, "spl\n'
  (path / 'metrics.jsonl').write_text(''.join(lines))
  with pytest.raises(ValueError, match=r'metrics\.jsonl:2 reads'):
    results.read(path)


def test_equal_runs_become_settings_of_their_own(make_run):
  make_run(name='a')
  make_run(name='b')
  runs = results.told_apart(results.read_all(make_run.folder))
  assert len({run.coordinates for run in runs}) == 2


def test_seeds_of_other_settings_are_no_seeds_of_this_one(make_run):
  for seed, (name, steps) in enumerate([('a', 20), ('b', 20), ('c', 40)]):
    make_run(name=name, seed=seed, train_steps=steps, data_dir=f'data-{name}')
  found = results.told_apart(results.read_all(make_run.folder))
  assert [run.coordinates.setting for run in found] == [
    *(('TRAIN_STEPS=20',), ('TRAIN_STEPS=20',), ('TRAIN_STEPS=40',))
  ]
  assert [run.coordinates.seed for run in found] == [0, 1, 2]


def test_runs_on_data_of_other_answers_are_no_seeds_of_one_row(
  make_run, tmp_path
):
  for seed, (name, files) in enumerate([('a', '1f'), ('b', '1f'), ('c', '2e')]):
    dataset_writer.write(
      'cqa',
      {'train': small_prepared.examples('train')},
      data_dir=tmp_path / name,
      about={'files': files, 'teacher': None, 'subset_seed': seed},
    )
    make_run(name=name, seed=seed, data_dir=str(tmp_path / name))
  found = results.told_apart(results.read_all(make_run.folder))
  first, other = ((f'DATA_DIR={tmp_path / name}',) for name in 'ac')
  assert [run.coordinates.setting for run in found] == [first, first, other]
  (tmp_path / 'c').rename(tmp_path / 'elsewhere')
  found = results.told_apart(results.read_all(make_run.folder))
  assert [run.coordinates.setting for run in found] == [(), (), ()]


def test_runs_that_were_moved_and_linked_are_found_once(make_run, tmp_path):
  make_run(seed=0)
  moved = make_run(seed=1)
  here = moved.rename(tmp_path / moved.name)
  moved.symlink_to(here)
  (make_run.folder / 'latest').symlink_to(make_run.folder / moved.name)
  (make_run.folder / 'all').symlink_to(make_run.folder)
  (make_run.folder / '0').symlink_to('cqa_gt_dsbs-tiny-f1-s0')
  found = results.read_all(make_run.folder)
  assert [run.coordinates.seed for run in found] == [0, 1]
  assert [run.path.name for run in found] == [
    *('cqa_gt_dsbs-tiny-f1-s0', 'cqa_gt_dsbs-tiny-f1-s1')
  ]


def test_no_runs_are_an_error(tmp_path):
  with pytest.raises(ValueError, match='there is no run in'):
    results.read_all(tmp_path)


@pytest.mark.parametrize(
  ('number', 'text'),
  [(7, '7'), (8432, '8.43k'), (247577856, '248M'), (2849757184, '2.85B')],
)
def test_sizes_have_three_digits(number, text):
  assert results.size_text(number) == text


def test_a_run_under_way_can_be_read(make_run):
  path = make_run(train_steps=100)
  with (path / 'metrics.jsonl').open('a') as file:
    file.write(json.dumps({'step': 25, 'split': 'train'})[:-3])
  run = results.read(path)
  assert not run.finished
  assert run.last_step == 20


def test_the_train_split_may_be_evaluated_too(make_run):
  path = make_run(validation=(), test=(11.0, 21.0))
  assert not _finished(path, splits=('train', 'test'))
  with (path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 20, "split": "train", "accuracy": 97.0}\n')
  assert _finished(path, splits=('train', 'test'))
  trained, evaluated = run_folder.read_metrics(path / 'metrics.jsonl')
  assert trained[20]['loss'] == 0.1
  assert evaluated['train'] == {20: {'accuracy': 97.0}}
