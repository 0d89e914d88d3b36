# SPDX-License-Identifier: Apache-2.0
"""Means, errors and gains equal slow arithmetic; texts cannot break out."""

import csv
import dataclasses
import io
import math
import re

import pytest

from dsbs_jax.reporting import comparison, tables
from dsbs_jax.runs import results


def _rows(maker):
  runs = results.read_all(maker.folder)
  return runs, comparison.rows(runs)


def _slow_error(values):
  mean = sum(values) / len(values)
  spread = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
  return math.sqrt(spread) / math.sqrt(len(values))


def test_scores_are_mean_and_standard_error():
  values = [61.0, 64.5, 60.25, 66.0]
  found = comparison.score(values)
  assert found.mean == pytest.approx(sum(values) / 4, rel=1e-12)
  assert found.error == pytest.approx(_slow_error(values), rel=1e-12)
  assert found.count == 4


def test_one_value_has_no_error_and_none_has_no_score():
  assert comparison.score([3.0]) == comparison.Score(3.0, None, 1)
  assert comparison.score([None, 3.0]).count == 1
  assert comparison.score([]) is None


def test_test_is_read_at_the_best_validation_step_and_at_the_last(make_run):
  chosen, last = [], []
  for seed, (best, end) in enumerate([(40.0, 1.0), (50.0, 2.0), (45.0, 9.0)]):
    make_run(seed=seed, validation=(10.0, 30.0, 20.0), test=(99.0, best, end))
    chosen.append(best)
    last.append(end)
  _, (row,) = _rows(make_run)
  assert row.test_best.mean == pytest.approx(45.0)
  assert row.test_best.error == pytest.approx(_slow_error(chosen))
  assert row.test_last.mean == pytest.approx(4.0)
  assert row.test_last.error == pytest.approx(_slow_error(last))
  assert row.validation_best.mean == 30.0


def test_gains_are_paired_by_seed(make_run):
  for seed, (plain, ours) in enumerate([(20.0, 25.0), (40.0, 43.0)]):
    make_run(seed=seed, method='gt_finetune', test=(0.0, plain))
    make_run(seed=seed, method='gt_dsbs', test=(0.0, ours))
  make_run(seed=7, method='gt_dsbs', test=(0.0, 90.0))
  make_run(seed=0, method='llm_dsbs', test=(0.0, 90.0))
  _, rows = _rows(make_run)
  by_method = {row.coordinates.method: row for row in rows}
  gain = by_method['gt_dsbs'].gain
  assert gain.mean == pytest.approx(4.0)
  assert gain.error == pytest.approx(_slow_error([5.0, 3.0]))
  assert gain.count == 2
  assert by_method['gt_finetune'].gain is None
  assert by_method['llm_dsbs'].gain is None


def test_unfinished_runs_are_counted_and_not_averaged(make_run):
  make_run(seed=0, test=(0.0, 10.0))
  make_run(seed=1, test=(0.0, 90.0), train_steps=1000)
  _, (row,) = _rows(make_run)
  assert row.test_last.mean == 10.0
  assert (len(row.runs), row.num_unfinished) == (1, 1)
  assert '1 (+1 unfinished)' in tables.markdown([row])


def test_settings_differ_by_size_fraction_and_what_was_varied(make_run):
  make_run(seed=0)
  make_run(seed=1)
  make_run(model='mini', emb_dim=32)
  make_run(fraction=0.5)
  make_run(setting=('ALPHA=0.3',))
  _, rows = _rows(make_run)
  assert [len(row.runs) for row in rows] == [2, 1, 1, 1]
  sizes = [row.num_params for row in rows]
  assert sizes == sorted(sizes)


def test_markdown_has_the_published_column_only_where_it_helps(make_run):
  make_run(benchmark='cqa')
  _, rows = _rows(make_run)
  text = tables.markdown(rows)
  assert '| 63.29 |' in text
  assert 'T5-Base 220M' in text
  make_run(benchmark='mine')
  _, rows = _rows(make_run)
  mine = [row for row in rows if row.coordinates.benchmark == 'mine']
  assert 'T5-Base' not in tables.markdown(mine)


def test_the_published_figure_stands_at_all_of_the_data_only(make_run):
  make_run(fraction=0.5)
  make_run(fraction=1.0, setting=('ALPHA=0.3',))
  _, rows = _rows(make_run)
  assert '63.29' not in tables.markdown(rows)


def test_hostile_names_stay_in_their_cells(make_run):
  make_run(name='a|b<script>')
  make_run(name='=cmd')
  make_run(name='a\\|b')
  runs = results.told_apart(results.read_all(make_run.folder))
  rows = comparison.rows(runs)
  table = tables.markdown(rows)
  assert '<script>' not in table
  lines = [line for line in table.splitlines() if line.startswith('|')]
  bars = {re.sub(r'\\.', '', line).count('|') for line in lines}
  assert len(bars) == 1
  lines = list(csv.reader(io.StringIO(tables.runs_csv(runs))))
  assert {len(line) for line in lines} == {len(lines[0])}
  names = {line[0] for line in lines[1:]}
  assert names == {'a|b<script>', "'=cmd", 'a\\|b'}


def test_no_text_in_either_csv_begins_a_formula(make_run):
  make_run()
  (run,), (row,) = _rows(make_run)
  for first in '=+-@\t\r':
    text = f'{first}cmd'
    hostile = dataclasses.replace(run.coordinates, benchmark=text)
    for written in (
      tables.settings_csv([dataclasses.replace(row, coordinates=hostile)]),
      tables.runs_csv([dataclasses.replace(run, coordinates=hostile)]),
    ):
      (line,) = csv.DictReader(io.StringIO(written, newline=''))
      assert line['benchmark'] == f"'{text}"


def test_csv_holds_the_numbers_in_full(make_run):
  for seed, value in enumerate([10.0, 11.0, 13.0]):
    make_run(seed=seed, test=(0.0, value))
  runs, rows = _rows(make_run)
  (line,) = csv.DictReader(io.StringIO(tables.settings_csv(rows)))
  assert float(line['test_last_mean']) == pytest.approx(34 / 3, rel=1e-15)
  assert float(line['test_last_error']) == pytest.approx(
    _slow_error([10.0, 11.0, 13.0])
  )
  assert line['gain_mean'] == ''
  per_run = list(csv.DictReader(io.StringIO(tables.runs_csv(runs))))
  assert [float(run['test_last']) for run in per_run] == [10.0, 11.0, 13.0]
  assert {run['best_step'] for run in per_run} == {'20'}
