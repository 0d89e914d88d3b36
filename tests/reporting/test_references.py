# SPDX-License-Identifier: Apache-2.0
"""The teacher and the untouched student are rows, and are compared."""

import csv
import io
import json
import re

import pytest

from dsbs_jax import contract
from dsbs_jax.data import benchmark
from dsbs_jax.reporting import (
  comparison,
  example_browser,
  findings,
  method_pairs,
  predictions,
  references,
  report,
  tables,
)
from dsbs_jax.runs import results, run_folder
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.training import loop
from tests import run_folders
from tests.claims import doors


@pytest.fixture
def start(tmp_path):
  folder = tmp_path / 'models' / 't5-tiny'
  folder.mkdir(parents=True)
  return folder


def _evaluate(folder, start, *, predictions=(), task='cqa_gt_label', **scores):
  """What `dsbs eval START --out=FOLDER` leaves."""
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / 'eval.jsonl').open('a') as file:
    for split, accuracy in scores.items():
      line = {'checkpoint': str(start), 'step': 0, 'task': task}
      line |= {'split': split, 'answers': 'generated', 'accuracy': accuracy}
      file.write(json.dumps(line) + '\n')
  if predictions:
    (folder / 'predictions').mkdir(exist_ok=True)
    (folder / 'predictions' / f'{task}-test-000000.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in predictions)
    )


def _lines(maker, answers):
  """Predictions that are right where the text has a '1'."""
  return [
    maker.line(i, prediction='yes' if right == '1' else 'no')
    for i, right in enumerate(answers)
  ]


def _taught(teach, answers):
  teach(
    *(
      benchmark.Example(
        *(
          i,
          f'test-{i}',
          f'question {i}',
          'yes',
          'yes' if right == '1' else 'no',
        ),
        *('why', 'parsed'),
      )
      for i, right in enumerate(answers)
    )
  )


def _all(maker):
  runs = results.told_apart(results.read_all(maker.folder))
  rows = comparison.rows(runs)
  return runs, rows, references.find([maker.folder], runs)


def _compared(maker):
  _, rows, found = _all(maker)
  (shown,) = example_browser.shown_rows(rows).items()
  return method_pairs.of_benchmark(*shown, found)


def _by_title(compared):
  return {method.title: method for method in compared.methods}


def test_both_are_rows_above_the_methods(make_run, teach, start, tmp_path):
  teach()
  make_run(initial_checkpoint=start)
  _evaluate(make_run.folder / 'untouched', start, test=4.5, validation=3.25)
  path = report.report([str(make_run.folder)], out=str(tmp_path / 'out'))
  table = (tmp_path / 'out' / 'table.md').read_text()
  rows = [line for line in table.splitlines() if line.startswith('| ')]
  untouched = '| Untouched student, asked as in cqa_gt_label | – | 4.50 | 4.50'
  assert rows[1].startswith(f'{untouched} | 3.25 | – | – |')
  assert rows[2].startswith('| Teacher (the LLM) | – | 77.25 | 77.25 | – |')
  assert rows[3].startswith('| Step-by-step, human labels |')
  assert 'Untouched student, asked as in cqa_gt_label</th>' in path.read_text()
  text = (tmp_path / 'out' / 'table.csv').read_text()
  lines = list(csv.DictReader(io.StringIO(text)))
  assert [line['method'] for line in lines] == [
    *('gt_dsbs', 'untouched', 'teacher')
  ]
  assert float(lines[1]['test_last_mean']) == 4.5
  assert lines[1]['setting'] == str(start)


@pytest.mark.parametrize('place', ['below', 'in the start', 'beside it'])
def test_an_untouched_student_is_found_where_eval_writes(
  make_run, start, place
):
  make_run(initial_checkpoint=start)
  folder = {
    'below': make_run.folder / 'any' / 'depth',
    'in the start': start,
    'beside it': start.parent,
  }[place]
  _evaluate(folder, start, test=4.5)
  (found,) = _all(make_run)[2]
  assert (found.test, found.validation) == (4.5, None)


def test_another_checkpoint_is_no_untouched_student(make_run, start):
  make_run()
  make_run(seed=1, initial_checkpoint=start)
  _evaluate(make_run.folder / 'other', start.parent / 'unknown', test=4.5)
  assert _all(make_run)[2] == []


def test_runs_from_random_parameters_have_no_untouched_row(make_run, start):
  make_run(model='tiny', initial_checkpoint=start)
  make_run(model='mini', emb_dim=32)
  _evaluate(start, start, test=4.5)
  _, rows, found = _all(make_run)
  tiny, mini = tables.markdown(rows, found).split('## ')[1:]
  assert 'Untouched' in tiny
  assert 'Untouched' not in mini


def test_a_later_evaluation_replaces_an_earlier_one(make_run, start):
  make_run(initial_checkpoint=start)
  _evaluate(start, start, test=4.5)
  _evaluate(start, start, test=5.5)
  (found,) = _all(make_run)[2]
  assert found.test == 5.5


def test_an_evaluation_of_another_kind_replaces_none(make_run, start):
  make_run(initial_checkpoint=start)
  _evaluate(start, start, test=4.5)
  line = json.loads((start / 'eval.jsonl').read_text())
  others = [
    {'num_beams': 4, 'accuracy': 6.5},
    {'backend': 'ct2', 'accuracy': 4.5},
    {'backend': 'ct2_int8', 'answers': 'chosen', 'accuracy': 7.5},
  ]
  with (start / 'eval.jsonl').open('a') as file:
    file.writelines(json.dumps(line | other) + '\n' for other in others)
  title = 'Untouched student, asked as in cqa_gt_label'
  assert {r.title: r.test for r in _all(make_run)[2]} == {
    title: 4.5,
    f'{title}, beams4': 6.5,
    f'{title}, ct2_int8, labels ranked': 7.5,
  }


def test_a_damaged_line_is_named(make_run, start):
  make_run(initial_checkpoint=start)
  (start / 'eval.jsonl').write_text('{"step": 0}\n')
  with pytest.raises(contract.UserError, match=r'eval\.jsonl:1 reads'):
    _all(make_run)


def test_a_teacher_that_answered_a_part_says_so(make_run, teach, monkeypatch):
  make_run(predictions=_lines(make_run, '1100'))
  _taught(teach, '1100')
  data = run_folder.prepared('cqa', None)
  counts = {'accuracy': 50.0, 'answered': 3, 'rows': 4}
  monkeypatch.setattr(
    data, 'metadata', {'splits': {'test': {'counts': counts}}}
  )
  (found,) = _all(make_run)[2]
  assert found.title.endswith('on the 3 of 4 test examples it answered')


def test_of_several_teachers_none_is_shown(make_run, monkeypatch):
  class Data(run_folders.Teacher):
    def __init__(self, accuracy):
      super().__init__(())
      self.metadata = {'splits': {'test': {'counts': {'accuracy': accuracy}}}}

  accuracies = {'a': 50.0, 'b': 60.0}
  monkeypatch.setattr(
    'dsbs_jax.runs.run_folder.prepared',
    lambda name, data_dir: Data(accuracies[data_dir]),
  )
  for seed, place in enumerate('aab'):
    make_run(name=f'run {seed}', seed=seed, data_dir=place)
  runs, _, found = _all(make_run)
  assert found == []
  assert comparison.llm_accuracy(runs, 'cqa') is None
  assert 'answers of several LLMs' in ' '.join(findings.notes(runs))
  assert comparison.llm_accuracy(runs[:2], 'cqa') == 50.0
  assert 'several LLMs' not in ' '.join(findings.notes(runs[:2]))


def test_differences_are_those_of_the_tables(make_run, teach):
  _taught(teach, '11110000')
  for seed, (plain, ours) in enumerate(
    [('11000000', '11110000'), ('10000000', '11100001')]
  ):
    for method, answers in (('gt_finetune', plain), ('gt_dsbs', ours)):
      accuracy = 100 * answers.count('1') / 8
      make_run(
        method=method,
        seed=seed,
        predictions=_lines(make_run, answers),
        test=(0.0, accuracy),
      )
  compared = _compared(make_run)
  _, rows, _ = _all(make_run)
  methods = _by_title(compared)
  plain, ours = (
    methods[title]
    for title in ('Standard finetuning', 'Step-by-step, human labels')
  )
  pair = compared.pair(ours, plain)
  (gain,) = [row.gain for row in rows if row.gain]
  assert pair.over_seeds.mean == pytest.approx(gain.mean)
  assert pair.over_seeds.error == pytest.approx(gain.error)
  assert pair.over_examples.mean == pytest.approx(gain.mean)
  assert pair.over_examples.count == 8
  # Seed 0 is shown: 1 and 2 of '1111' are right in both.
  assert (pair.only_first, pair.only_second, pair.num_shown) == (2, 0, 8)
  turned = compared.pair(plain, ours)
  assert turned.over_seeds.mean == -pair.over_seeds.mean
  assert turned.over_seeds.low == -pair.over_seeds.high
  assert (turned.only_first, turned.only_second) == (0, 2)


def test_a_reference_stands_beside_every_seed(make_run, teach, start):
  _taught(teach, '1111')
  for seed, answers in enumerate(['1100', '1110']):
    make_run(
      seed=seed,
      initial_checkpoint=start,
      predictions=_lines(make_run, answers),
    )
  _evaluate(start, start, test=25.0, predictions=_lines(make_run, '0001'))
  compared = _compared(make_run)
  ours, untouched, teacher = compared.methods
  assert (untouched.kind, teacher.kind) == ('untouched', 'teacher')
  over_start = compared.pair(ours, untouched)
  assert over_start.over_seeds.mean == pytest.approx(37.5)  # 25 and 50
  assert over_start.over_seeds.count == 2
  assert (over_start.only_first, over_start.only_second) == (2, 1)
  assert compared.pair(ours, teacher).over_examples.mean == -37.5
  neither = compared.pair(untouched, teacher)
  assert neither.over_seeds is None
  assert neither.over_examples.mean == -75.0


def test_a_hinted_label_is_not_the_teachers(make_run, teach):
  make_run(predictions=_lines(make_run, '1'))
  teach(
    benchmark.Example(
      *(0, 'a', 'question 0', 'yes', 'yes', 'why', 'rationalized')
    )
  )
  teacher = _by_title(_compared(make_run))['Teacher (the LLM)']
  assert teacher.shown == {0: False}


def test_examples_that_one_did_not_answer_are_left_out(make_run, teach):
  make_run(predictions=_lines(make_run, '1100'))
  teach(
    benchmark.Example(0, 'a', 'question 0', 'yes', 'no', '', 'parsed'),
    benchmark.Example(
      *(1, 'b', 'question 1', 'yes', ' ', ' ', 'no_completion')
    ),
  )
  compared = _compared(make_run)
  pair = compared.pair(*compared.methods)
  assert pair.over_examples.count == pair.num_shown == 1
  assert pair.over_examples.mean == 100.0
  assert pair.over_seeds.mean == 100.0


def test_a_completion_that_cannot_be_read_is_a_wrong_answer(make_run, teach):
  make_run(predictions=_lines(make_run, '1'))
  teach(benchmark.Example(0, 'a', 'question 0', 'yes', '', '', 'no_marker'))
  teacher = _by_title(_compared(make_run))['Teacher (the LLM)']
  assert teacher.shown == {0: False}


def test_without_predictions_the_logged_accuracies_are_compared(make_run):
  for seed, value in enumerate((30.0, 35.0)):
    make_run(seed=seed, method='gt_finetune', test=(0.0, value))
    make_run(
      seed=seed,
      test=(0.0, value + 4),
      predictions=_lines(make_run, '10'),
    )
  _, rows, _ = _all(make_run)
  questions = predictions.Questions()
  plain, ours = (
    method_pairs.of_row(row, lambda gold, label: gold == label, questions)
    for row in rows
  )
  pair = method_pairs.compare(ours, plain)
  assert pair.over_seeds.mean == pytest.approx(4.0)
  assert pair.over_examples is None
  assert pair.num_shown == 0


def test_answers_to_other_questions_are_not_compared(
  make_run, teach, capsys, tmp_path
):
  """Data that was prepared again has other rows at the same places."""
  _taught(teach, '1111')
  for method, text in (('gt_finetune', 'question'), ('gt_dsbs', 'another')):
    lines = [make_run.line(0)]
    lines += [make_run.line(i, text=text) for i in (1, 2, 3)]
    make_run(method=method, predictions=lines)
  compared = _compared(make_run)
  plain, ours, teacher = compared.methods
  assert compared.questions.differ
  assert set(ours.shown) == {0}
  for other in (plain, teacher):
    pair = compared.pair(ours, other)
    assert pair.over_examples.count == pair.num_shown == 1
  assert compared.pair(plain, teacher).over_examples.count == 4
  _, rows, _ = _all(make_run)
  (browser,) = example_browser.browsers(rows, compared={'cqa': compared})
  given = [len([*filter(None, e['students'])]) for e in browser['examples']]
  assert given == [2, 1, 1, 1]
  page = report.report([str(make_run.folder)], out=str(tmp_path / 'out'))
  said = 'The runs on cqa were tested on different examples'
  assert said in capsys.readouterr().out
  assert said in page.read_text()


def test_no_question_in_common_is_no_comparison(make_run):
  for method, text in (('gt_finetune', 'question'), ('gt_dsbs', 'another')):
    for seed in range(2):
      lines = [make_run.line(i, text=text) for i in range(3)]
      make_run(method=method, seed=seed, predictions=lines)
  (pair,) = _compared(make_run).pairs.values()
  assert (pair.over_seeds, pair.over_examples, pair.num_shown) == (
    None,
    None,
    0,
  )


def test_a_prefix_makes_no_other_question(make_run):
  for prefix in ('', '[label] ', 'predict: '):
    line = make_run.line(0) | {'input': f'{prefix}predict: what?'}
    make_run(name=f'run {prefix}', predictions=[line])
  _, rows, found = _all(make_run)
  compared = method_pairs.of_benchmark('cqa', rows, found)
  assert not compared.questions.differ


def _finding_texts(maker):
  runs, rows, found = _all(maker)
  compared = {
    name: method_pairs.of_benchmark(name, members, found)
    for name, members in example_browser.shown_rows(rows).items()
  }
  return [
    f'{f.figure} {f.text}' for f in findings.findings(runs, rows, compared)
  ]


def test_a_null_result_is_said_as_one(make_run, teach, start):
  _taught(teach, '10' * 20)
  for seed, (plain, ours) in enumerate([('1100', '1010'), ('1000', '0101')]):
    for method, answers in (('gt_finetune', plain), ('gt_dsbs', ours)):
      make_run(
        method=method,
        seed=seed,
        initial_checkpoint=start,
        predictions=_lines(make_run, answers * 10),
        test=(0.0, 25.0 * answers.count('1')),
      )
  _evaluate(start, start, test=0.0, predictions=_lines(make_run, '0000' * 10))
  gain, untouched, teacher, _ = _finding_texts(make_run)
  assert gain.startswith('+12.5 points Step-by-step, human labels, over')
  assert 'No difference beyond noise: +12.50 points' in gain
  assert 'Over 2 seeds (paired t-test, p = 0.5) the 95 % interval,' in gain
  assert gain.count('includes 0: it shows no difference.') == 2
  assert untouched.startswith(
    '+50.0 points Step-by-step, human labels, against: Untouched student'
  )
  assert 'All 2 seeds have the same difference.' in untouched
  assert untouched.endswith('leaves out 0.')
  assert teacher.startswith(
    '+0.0 points Step-by-step, human labels, against: Teacher (the LLM).'
  )
  assert teacher.endswith('includes 0: it shows no difference.')


def test_the_browser_shows_the_untouched_student(make_run, teach, start):
  _taught(teach, '10')
  make_run(initial_checkpoint=start, predictions=_lines(make_run, '01'))
  _evaluate(start, start, test=100.0, predictions=_lines(make_run, '11'))
  _, rows, _ = _all(make_run)
  compared = {'cqa': _compared(make_run)}
  (browser,) = example_browser.browsers(rows, compared=compared)
  assert [s['method'] for s in browser['students']] == ['gt_dsbs', 'untouched']
  assert [s['right'] for s in browser['examples'][0]['students']] == [
    *(False, True)
  ]
  assert [m['student'] for m in browser['methods']] == [0, 1, None]
  assert len(browser['pairs']) == 3


def test_a_start_that_eval_scored_is_found(unbroken, settings, tmp_path):
  start = f'{unbroken.model_dir}/checkpoint_6'
  run = settings(
    tmp_path / 'runs' / 'b',
    f"INITIAL_CHECKPOINT_PATH = '{start}'",  # all else as in the other run
  )
  assert loop.train(run, config_text=gin_config.operative_text()) == 0
  done = doors.call(
    'dsbs_jax.eval',
    start,
    f'--data_dir={run.data_dir}',
    f'--out={tmp_path / "runs" / "untouched"}',
    '--vocabulary=bytes',
    '--max_decode_len=8',
  )
  assert done.status == 0, done.stderr
  report.report([str(tmp_path / 'runs')], out=str(tmp_path / 'out'))
  table = (tmp_path / 'out' / 'table.md').read_text()
  assert '| Untouched student, asked as in svamp_gt_label | – | 0.00 |' in table
  page = (tmp_path / 'out' / 'report.html').read_text()
  assert '"method":"untouched"' in page
  own = f'{unbroken.model_dir}/predictions/svamp_gt_label-test-000006.jsonl'
  (browser,) = json.loads(re.search(r'"browser-data">(.*?)</script>', page)[1])
  said = [e['students'][1]['label'] for e in browser['examples']]
  with open(own) as file:
    assert said == [json.loads(line)['prediction'] for line in file]
