# SPDX-License-Identifier: Apache-2.0
"""The page shows what the runs hold, loads nothing, and keeps text as text."""

import csv
import html.parser
import json
import re

import pytest

from dsbs_jax.data import benchmark
from dsbs_jax.reporting import (
  comparison,
  example_browser,
  figures,
  findings,
  page,
  report,
)
from dsbs_jax.runs import results, run_folder


def _rows(maker):
  runs = results.told_apart(results.read_all(maker.folder))
  return runs, comparison.rows(runs)


def _browsers(maker, **options):
  return example_browser.browsers(_rows(maker)[1], **options)


def _build(maker):
  runs, rows = _rows(maker)
  browsers = example_browser.browsers(rows)
  return page.build(runs, rows, browsers), browsers


def _findings(maker):
  """The findings as one text."""
  found = findings.findings(*_rows(maker))
  return '\n'.join(f'{f.figure} {f.text}' for f in found)


class _Reader(html.parser.HTMLParser):
  """Collects elements, ids, addresses and the text outside of scripts."""

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.tags, self.ids, self.references, self.scripts = [], [], [], []
    self.text = ''
    self._script = False
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self._script = tag == 'script'
    for name, value in attributes:
      if name == 'id':
        self.ids.append(value)
      if name in ('src', 'href', 'action', 'data', 'poster', 'srcset'):
        self.references.append(value)
      assert not name.startswith('on'), f'{tag} {name}={value}'

  def handle_endtag(self, tag):
    self._script = self._script and tag != 'script'

  def handle_data(self, data):
    if self._script:
      self.scripts.append(data)
    else:
      self.text += data


def test_hostile_texts_are_only_text(hostile_runs):
  text, browsers = _build(hostile_runs)
  reader = _Reader(text)
  assert reader.tags.count('script') == 2
  assert 'img' not in reader.tags
  assert len(reader.ids) == len(set(reader.ids))
  data = json.loads(reader.scripts[0])
  assert data == browsers
  shown = data[0]['examples']
  assert [e['gold'] for e in shown] == hostile_runs.texts
  assert [e['teacher']['rationale'] for e in shown] == hostile_runs.texts
  assert '<script>alert(1)<' in reader.text


def test_the_page_refers_to_nothing_outside(hostile_runs):
  text, _ = _build(hostile_runs)
  assert all(ref.startswith('#') for ref in _Reader(text).references)
  assert not re.search(r'@import|url\((?!#)|https?:|fetch\(|XMLHttp', text)
  assert "default-src 'none'" in text


def test_a_page_with_lone_surrogates_can_be_written(hostile_runs):
  out = hostile_runs.folder / 'out'
  path = report.report([str(hostile_runs.folder)], out=str(out))
  assert path.read_text(encoding='utf-8').startswith('<!doctype html>')
  assert sorted(p.name for p in out.iterdir()) == [
    'report.html',
    'runs.csv',
    'table.csv',
    'table.md',
  ]


def test_the_browser_has_teacher_students_and_verdicts(make_run, teach):
  teach(
    benchmark.Example(
      *(0, 'a', 'question 0', '( 4 / 2 )', '(1 + 1)', 'why', 'parsed')
    ),
    benchmark.Example(1, 'b', 'question 1', '3', 'x', '', 'no_label'),
  )
  lines = [
    make_run.line(0, target='( 4 / 2 )', prediction='2'),
    make_run.line(1, target='3', prediction='4'),
  ]
  path = make_run(benchmark='svamp', predictions=lines)
  rationale = [{**make_run.line(1), 'prediction': 'because'}]
  (path / 'predictions/svamp_rationale-test-000020.jsonl').write_text(
    json.dumps(rationale[0]) + '\n'
  )
  (browser,) = _browsers(make_run)
  first, second = browser['examples']
  assert first['teacher'] == {
    'label': '(1 + 1)',
    'rationale': 'why',
    'right': True,
  }
  assert first['students'][0]['right']
  assert first['students'][0]['rationale'] is None
  assert not second['teacher']['right']
  assert (first['argues'], second['argues']) == ('for', None)
  assert second['students'] == [
    {'label': '4', 'right': False, 'rationale': 'because'}
  ]


def test_predictions_are_those_of_the_chosen_step(make_run):
  path = make_run(
    validation=(30.0, 20.0), predictions=[make_run.line(0, prediction='late')]
  )
  early = path / 'predictions/cqa_gt_label-test-000010.jsonl'
  early.write_text(json.dumps(make_run.line(0, prediction='early')) + '\n')
  (browser,) = _browsers(make_run)
  assert browser['students'][0]['step'] == 10
  assert browser['examples'][0]['students'][0]['label'] == 'early'


def test_a_long_split_is_cut_and_says_so(make_run):
  make_run(predictions=[make_run.line(i) for i in range(30)])
  (browser,) = _browsers(make_run, limit=20)
  assert (browser['num_examples'], len(browser['examples'])) == (30, 20)


def test_without_data_the_inputs_of_the_predictions_are_shown(make_run):
  make_run(predictions=[make_run.line(0)])
  (browser,) = _browsers(make_run)
  assert browser['examples'][0]['teacher'] is None
  assert browser['examples'][0]['argues'] is None
  assert browser['examples'][0]['input'] == '[label] question 0'


def test_a_benchmark_that_nobody_registers_compares_texts(make_run):
  make_run(
    benchmark='mystery',
    predictions=[make_run.line(0), make_run.line(1, target='no')],
  )
  (browser,) = _browsers(make_run)
  assert 'mystery is not registered here' in browser['note']
  verdicts = [e['students'][0]['right'] for e in browser['examples']]
  assert verdicts == [True, False]


def test_figures_show_every_method_the_llm_and_the_paper(make_run, teach):
  teach()
  for fraction in (0.5, 1.0):
    for seed in (0, 1):
      for i, method in enumerate(('gt_finetune', 'gt_dsbs', 'llm_dsbs')):
        score = 50.0 + 5 * i + 10 * fraction + seed
        make_run(method=method, fraction=fraction, seed=seed, test=(0.0, score))
  text = _Reader(_build(make_run)[0]).text
  assert 'The LLM itself (teacher): 77.2' in text
  assert 'Paper, Step-by-step, human labels: 63.29' in text
  assert 'Step-by-step, human labels, tiny (8.43k parameters)' in text
  assert '65.50 ± 0.50 (n = 2)' in text
  assert 'Label loss in training' in text
  assert 'Rationale loss in training' in text
  assert 'start from random parameters' in text
  # 65.5 with all of the data; the half of it (60.5) passes finetuning's 60.5.
  assert re.search(r'50 %\s+of the training data is enough for "Step', text)
  assert '+5.0 points' in text
  assert (
    'More than two standard errors: +5.00 points, standard error 0.00,'
    ' 2 paired seeds.'
  ) in text


def test_every_value_that_was_varied_has_a_line_of_its_own(make_run):
  for alpha in ('0.1', '0.7', '1.0'):
    make_run(setting=(f'ALPHA={alpha}',))
  make_run(method='gt_finetune')
  _, rows = _rows(make_run)
  styles = figures.styles(rows)
  (figure,) = figures.by_fraction(rows, styles, llm=None)
  curves = figures.by_step(rows, styles)
  assert len(curves) == 4
  for drawn in (figure, *curves):
    lines = drawn.plot.series
    looks = {(s.style['marker'], s.style['linestyle']) for s in lines}
    colors = {s.style['color'] for s in lines}
    assert len(looks) == len(colors) == len(lines) >= 3


def test_a_method_looks_the_same_in_all_reports(make_run):
  make_run(method='llm_dsbs', setting=('ALPHA=0.3',))
  make_run(method='llm_dsbs')
  one = figures.styles(_rows(make_run)[1])
  make_run(method='gt_finetune')
  make_run(method='llm_finetune', setting=('ALPHA=0.1',))
  other = figures.styles(_rows(make_run)[1])
  title = 'Step-by-step, LLM labels'
  assert one[title] == other[title]


def test_figures_say_what_their_error_bars_are(make_run):
  def captions():
    _, rows = _rows(make_run)
    found = figures.by_fraction(rows, figures.styles(rows), llm=None)
    return [
      (f.caption, [p.error for p in f.plot.series[0].points]) for f in found
    ]

  make_run(benchmark='mine', test=(0.0, 20.0))
  assert captions() == [
    ('One run per point, so there are no error bars.', [None])
  ]
  make_run(benchmark='mine', seed=1, test=(0.0, 22.0))
  assert captions() == [
    ('Means over 2 seeds; bars: ± one standard error.', [1.0])
  ]


def test_losses_that_are_not_finite_are_left_out(make_run):
  path = make_run() / 'metrics.jsonl'
  text = path.read_text().replace('"label/loss": 0.1', '"label/loss": NaN')
  path.write_text(text)
  _, rows = _rows(make_run)
  loss, *_ = figures.by_step(rows, figures.styles(rows))
  assert [point.x for point in loss.plot.series[0].points] == [20]


def test_one_seed_or_a_small_gain_is_not_sold_as_a_finding(make_run):
  make_run(method='gt_finetune', test=(0.0, 10.0))
  make_run(method='gt_dsbs', test=(0.0, 30.0))
  make_run(method='gt_dsbs', test=(0.0, 30.0), fraction=0.5)
  text = _findings(make_run)
  assert 'One seed only: this may be chance.' in text
  assert 'is enough for' not in text
  for seed, gain in ((1, -15.0), (2, 8.0)):
    make_run(method='gt_finetune', seed=seed, test=(0.0, 20.0))
    make_run(method='gt_dsbs', seed=seed, test=(0.0, 20.0 + gain))
  assert (
    'No difference beyond noise: +4.33 points, standard error 10.27,'
    ' 3 paired seeds.'
  ) in _findings(make_run)


@pytest.mark.parametrize(
  ('gains', 'verdict'),
  [
    ((0.0, 9.0, 6.0), 'No difference beyond noise: +5.00'),  # 1.9 errors
    ((1.0, 9.0, 5.0), 'More than two standard errors: +5.00'),  # 2.2 errors
  ],
)
def test_two_standard_errors_are_the_border_of_noise(make_run, gains, verdict):
  for seed, gain in enumerate(gains):
    make_run(method='gt_finetune', seed=seed, test=(0.0, 20.0))
    make_run(method='gt_dsbs', seed=seed, test=(0.0, 20.0 + gain))
  assert verdict in _findings(make_run)


def test_nothing_is_saved_where_nothing_was_learned(make_run):
  for seed in (0, 1):
    for method in ('gt_finetune', 'gt_dsbs'):
      for fraction in (0.5, 1.0):
        make_run(method=method, seed=seed, fraction=fraction, test=(0.0, 0.0))
  assert 'is enough for' not in _findings(make_run)


def test_nothing_is_saved_where_finetuning_needs_no_more(make_run):
  for seed in (0, 1):
    for method, fraction, score in (
      ('gt_finetune', 0.5, 30.0),
      ('gt_finetune', 1.0, 20.0),
      ('gt_dsbs', 0.5, 40.0),
      ('gt_dsbs', 1.0, 40.0),
    ):
      make_run(
        method=method, seed=seed, fraction=fraction, test=(0.0, score + seed)
      )
  assert 'is enough for' not in _findings(make_run)


def test_sizes_are_compared_where_there_are_two(make_run):
  def by_size():
    _, rows = _rows(make_run)
    return figures.by_size(rows, figures.styles(rows), llm=None)

  make_run(model='tiny')
  assert by_size() == []
  make_run(model='mini', emb_dim=32)
  (figure,) = by_size()
  assert [label for _, label in figure.plot.x_ticks] == [
    'tiny 8.43k',
    'mini 16.7k',
  ]
  assert 'Accuracy by model size' in _build(make_run)[0]


def test_a_folder_without_finished_runs_has_a_page(make_run):
  make_run(train_steps=1000)
  text, browsers = _build(make_run)
  assert browsers == []
  assert 'Finished runs: 0, on cqa. Unfinished runs, left out of all' in text


def test_failed_runs_are_named(make_run, tmp_path):
  make_run()
  broken = make_run.folder / 'cqa_gt_dsbs-tiny-f1-s1'
  broken.mkdir()
  (broken / run_folder.FAILURE_FILE).write_text('{}')
  path = report.report([str(make_run.folder)], out=str(tmp_path / 'out'))
  text = _Reader(path.read_text()).text
  assert 'Failed runs: cqa_gt_dsbs-tiny-f1-s1.' in text


def test_a_failed_run_that_was_trained_since_is_not_named(make_run, tmp_path):
  path = make_run()
  (path / run_folder.FAILURE_FILE).write_text('{}')
  path = report.report([str(make_run.folder)], out=str(tmp_path / 'out'))
  assert 'Failed runs' not in _Reader(path.read_text()).text


def test_a_run_that_is_given_twice_is_one_run(make_run, tmp_path, capsys):
  make_run(seed=0, test=(0.0, 30.0))
  one = make_run(seed=1, test=(0.0, 40.0))
  folder = str(make_run.folder)
  report.report([folder, str(one), folder], out=str(tmp_path / 'out'))
  assert '| 35.00 ± 5.00 | 35.00 ± 5.00 |' in capsys.readouterr().out
  text = (tmp_path / 'out' / 'runs.csv').read_text()
  assert len(text.splitlines()) == 3


def test_both_csv_files_have_the_same_settings(make_run, tmp_path):
  for seed, name in enumerate('abc'):
    make_run(name=name, seed=seed, train_steps=20 if name < 'c' else 40)
  report.report([str(make_run.folder)], out=str(tmp_path / 'out'))
  settings = {
    name: [line['setting'] for line in _csv(tmp_path / 'out' / name)]
    for name in ('runs.csv', 'table.csv')
  }
  assert settings == {
    'runs.csv': ['TRAIN_STEPS=20', 'TRAIN_STEPS=20', 'TRAIN_STEPS=40'],
    'table.csv': ['TRAIN_STEPS=20', 'TRAIN_STEPS=40'],
  }


def _csv(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))
