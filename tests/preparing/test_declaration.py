# SPDX-License-Identifier: Apache-2.0
"""From a file of rows to a trained student, without Python and gin files."""

import dataclasses
import json

import pytest

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import declared, register
from dsbs_jax.data.prepared import store
from dsbs_jax.data.source import sources
from dsbs_jax.experiments import launchers
from dsbs_jax.inference import infer_file
from dsbs_jax.preparing import prepare as prepare_lib
from dsbs_jax.runs import run_folder, self_description
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.training import loop
from tests import small_runs
from tests.data import row_tables, toy


@pytest.fixture
def prepare(tmp_path, capsys, monkeypatch):
  """Prepares by flags; returns what was printed."""
  monkeypatch.setattr(register._STATE, 'settings', {})
  monkeypatch.chdir(tmp_path)

  def run(rows='rows.csv', **options):
    given = {'input': 'question', 'label': 'answer'} if rows else {}
    config = prepare_lib.PrepareConfig(
      **{
        'rows': rows,
        'data_dir': 'data',
        'vocabulary': 'bytes',
        **given,
        **options,
      }
    )
    prepare_lib.prepare(config)
    return ' '.join(''.join(capsys.readouterr()).split())

  return run


def fingerprints(name, data_dir='data'):
  opened = store.read(name, data_dir)
  return {split: opened.fingerprint(split) for split in opened.splits}


def test_every_kind_of_file_gives_the_same_bytes(prepare, tmp_path):
  for suffix in row_tables.SUFFIXES:
    row_tables.write(tmp_path / f'rows{suffix}')
    prepare(f'rows{suffix}', data_dir=suffix[1:])
  row_tables.save_dataset(tmp_path / 'rows')
  prepare('rows', data_dir='saved')
  wanted = fingerprints('rows', 'csv')
  assert set(wanted) == {'train', 'validation', 'test'}
  for data_dir in ('saved', *(suffix[1:] for suffix in row_tables.SUFFIXES)):
    assert fingerprints('rows', data_dir) == wanted, data_dir


def test_saved_datasets_bring_their_splits_and_class_names(prepare, tmp_path):
  names = ['yes', 'no']
  rows = [
    {**row, 'answer': names.index(row['answer'])} for row in row_tables.ROWS
  ]
  features = {'answer': {'names': names, '_type': 'ClassLabel'}}
  for split, part in (('train', rows[:20]), ('test', rows[20:])):
    folder = tmp_path / 'saved' / split
    row_tables.save_dataset(folder, part, features=features)
  said = json.dumps({'splits': ['train', 'test']})
  (tmp_path / 'saved' / 'dataset_dict.json').write_text(said)
  printed = prepare('saved', labels=names)
  assert 'a tenth of train is validation' in printed
  opened = store.read('saved', 'data')
  sizes = [opened.num_examples(split) for split in opened.splits]
  assert sizes == [18, 2, 10]
  (first, *_) = opened.examples('test')
  assert (first.gt_label, first.index) == ('yes', 0)


def test_only_train_is_cut_and_that_is_said(prepare, tmp_path):
  row_tables.write(tmp_path / 'rows.csv')
  printed = prepare()
  assert (
    'rows: a tenth of train is validation and a tenth of train is test, always'
    ' the same rows'
  ) in printed
  opened = store.read('rows', 'data')
  held = {e.index for e in opened.examples('test')}
  every = [e.index for split in opened.splits for e in opened.examples(split)]
  assert sorted(every) == list(range(30)) and len(held) == 3
  prepare(fraction=0.5, data_dir='half')
  half = store.read('rows', 'half')
  assert {e.index for e in half.examples('test')} == held
  row_tables.write(tmp_path / 'dev.tsv', row_tables.ROWS[:4])
  row_tables.write(tmp_path / 'test.jsonl', row_tables.ROWS[:5])
  printed = prepare(
    validation='dev.tsv', test='test.jsonl', benchmark='mine', data_dir='all'
  )
  assert 'tenth' not in printed
  opened = store.read('mine', 'all')
  sizes = [opened.num_examples(split) for split in opened.splits]
  assert sizes == [30, 4, 5]


def test_the_llm_s_answers_come_later(prepare, tmp_path):
  row_tables.write(tmp_path / 'rows.csv')
  others = [{'id': f'train-{i}', 'text': 'So. The answer is no.'} for i in [0]]
  toy.write_lines(tmp_path / 'llm' / 'train.jsonl', others)  # not of these rows
  printed = prepare(labels=['yes', 'no'])
  assert '│ completions │ 0 │ 0 │ 0 │ 0 │' in printed
  # Stage 1 asks about these rows, by what was recorded.
  known = register.benchmark('rows', data_dir='data')
  source = declared.source('rows', 'data')
  asked = list(sources.read_rows(known, source, 'train'))
  assert len(asked) == 30
  lines = [
    {
      'id': row.example_id,
      'text': f'So it is. THE ANSWER IS **{row.gt_label.title()}**.',
      'fingerprint': row.fingerprint,
    }
    for row in asked
  ]
  toy.write_lines(tmp_path / 'llm.jsonl', lines)
  with pytest.raises(contract.UserError, match='with other completions'):
    prepare(None, benchmark='rows', completions='llm.jsonl')
  again = {'benchmark': 'rows', 'completions': 'llm.jsonl', 'overwrite': True}
  printed = prepare(None, **again)
  assert '│ parsed │ 30 │ 24 │ 3 │ 3 │' in printed
  assert 'LLM label accuracy % │ 100.00' in printed
  # They are remembered: by the same folder, and by a subset of it.
  assert 'is prepared' in prepare(None, benchmark='rows')
  prepare(None, benchmark='rows', source='data', data_dir='h', fraction=0.5)
  examples = list(store.read('rows', 'h').examples('train'))
  assert 0 < len(examples) < 24
  assert {e.rationale for e in examples} == {'So it is.'}


def test_another_description_is_not_served(prepare, tmp_path):
  row_tables.write(tmp_path / 'rows.csv')
  prepare()
  assert 'is prepared' in prepare()
  with pytest.raises(contract.UserError, match='with other labels .*labels.: '):
    prepare(labels=['yes', 'no'])
  prepare(labels=['yes', 'no'], overwrite=True)
  assert register.benchmark('rows', data_dir='data').labels == ('yes', 'no')
  row_tables.write(tmp_path / 'rows.csv', row_tables.ROWS[:20])
  with pytest.raises(contract.UserError, match='with other files'):
    prepare(None, benchmark='rows')


@pytest.mark.parametrize(
  'options, message',
  [
    ({'input': None}, '--input is missing. The columns are question, answer:'),
    ({'label': ''}, "--label is missing. .*--label='{question}'"),
    ({'input': '{quesion}'}, "--input names the column 'quesion', .*Did you"),
    ({'label': 'anser'}, "'anser', but the columns.*Did you mean answer"),
    ({'label': 'ANSWER'}, "--label names the column 'ANSWER'.* mean answer"),
    ({'input': 'question.a'}, "--input names the column 'question.a'"),
    ({'id': 'uid'}, "--id names the column 'uid'.*are question, answer"),
    ({'options': ['a']}, "--options names the column 'a'"),
    ({'labels': ['yes', 'never']}, "rows.csv:4 has the label 'no', expected"),
    ({'rows': 'no.csv'}, '--rows=.*no.csv does not exist'),
    ({'rows': 'empty.csv'}, 'empty.csv has no rows'),
    ({'rows': '12.csv'}, 'gives no name for the benchmark. Give --benchmark'),
    ({'benchmark': 'cqa'}, '--benchmark=cqa is a benchmark in Python already'),
    ({'source': 'x'}, '--rows is given with --source'),
    ({'module': 'x'}, '--rows is given with --module'),
    ({'rows': None}, '--benchmark is missing'),
    (
      {'rows': None, 'benchmark': 'x', 'input': 'q'},
      '--input is given without --rows',
    ),
    ({'test': 'other.csv'}, "--input names .*'question'.*of other.csv are q"),
    ({'splits': ['dev']}, '--splits names dev'),
  ],
)
def test_wrong_requests_are_clear_errors(prepare, tmp_path, options, message):
  for name in ('rows.csv', '12.csv'):
    row_tables.write(tmp_path / name)
  (tmp_path / 'empty.csv').write_text('question,answer\n')
  (tmp_path / 'other.csv').write_text('q,answer\nx,yes\n')
  with pytest.raises(contract.UserError, match=message):
    prepare(**{'rows': 'rows.csv', **options})


def test_a_benchmark_in_python_may_name_a_table(tmp_path):
  lines = [{'id': f'r{i}', 'q': f'{i}?', 'a': 'yes'} for i in range(3)]
  row_tables.write(tmp_path / 'train.csv', lines)
  made = dataclasses.replace(toy.BENCHMARK, splits={'train': 'train.csv'})
  rows = list(sources.read_rows(made, tmp_path, 'train'))
  assert [row.input for row in rows] == ['0?', '1?', '2?']
  assert sources.count_rows(made, tmp_path, 'train') == 3


def test_a_sweep_prepares_subsets_of_a_described_folder(prepare, tmp_path):
  row_tables.write(tmp_path / 'rows.csv')
  prepare()
  subset = launchers.jobs.Subset(
    benchmark='rows',
    source='data',
    data_dir='half',
    fraction=0.5,
    subset_seed=0,
    vocabulary='bytes',
  )
  assert launchers.in_process_launcher(subset, log=tmp_path / 'log') == 0
  assert subset.done
  held = [store.read('rows', d).fingerprint('test') for d in ('data', 'half')]
  assert held[0] == held[1]


def test_a_student_learns_from_a_table_and_answers_one(
  prepare, tmp_path, monkeypatch
):
  rows = [{**row, 'qid': f'q{i}'} for i, row in enumerate(row_tables.ROWS)]
  row_tables.write(tmp_path / 'rows.csv', rows)
  prepare(labels=['yes', 'no'], id='qid')
  run = small_runs.settings(
    tmp_path / 'run',
    tmp_path / 'data',
    "MIXTURE_OR_TASK_NAME = 'rows_gt_label'",
    'TRAIN_STEPS = 2',
    'EVAL_PERIOD = 2',
  )
  loop.train(run)
  scores = run_folder.evaluations(str(tmp_path / 'run'), 2)
  assert set(scores) == {'validation', 'test'}
  monkeypatch.setenv('DSBS_DATA_DIR', str(tmp_path / 'data'))
  model = ('EMB_DIM', 'HEAD_DIM', 'MLP_DIM', 'NUM_ENC', 'NUM_DEC', 'VOCAB')
  infer_file.infer(
    gin_config.build(
      infer_file.InferConfig,
      gin_files=['gin/infer.gin', 'gin/models/tiny.gin'],
      gin_bindings=[
        f"CHECKPOINT_PATH = '{tmp_path / 'run'}'",
        "MIXTURE_OR_TASK_NAME = 'rows_gt_label'",
        "BENCHMARK = 'rows'",
        "INPUT = 'rows.csv'",
        "OUTPUT = 'answers.jsonl'",
        'SCORE_LABELS = True',
        *(text for text in small_runs.BINDINGS if text.startswith(model)),
      ],
      search_paths=[str(small_runs.REPOSITORY)],
    )
  )
  lines = (tmp_path / 'answers.jsonl').read_text().splitlines()
  answers = [json.loads(line) for line in lines]
  answers = [line for line in answers if 'label' in line]
  assert [line['line'] for line in answers] == list(range(1, 31))
  assert [line['qid'] for line in answers] == [f'q{i}' for i in range(30)]
  assert {line['label'] for line in answers} <= {'yes', 'no'}

  # On another machine, a checkpoint tells the benchmark without the data.
  monkeypatch.delenv('DSBS_DATA_DIR')
  (tmp_path / 'data').rename(tmp_path / 'elsewhere')
  monkeypatch.delitem(benchmark_lib._REGISTRY, 'rows')
  with pytest.raises(ValueError, match="No benchmark is named 'rows'"):
    register.benchmark('rows')
  self_description.training(str(tmp_path / 'run'))
  assert register.benchmark('rows').labels == ('yes', 'no')


def test_inputs_of_two_splits_and_labels_of_two_spellings_are_told(
  prepare, tmp_path
):
  def write(name, *rows):
    lines = [json.dumps({'question': q, 'answer': a}) for q, a in rows]
    (tmp_path / name).write_text('\n'.join(lines))

  write(
    'rows.jsonl',
    ('a?', 'Yes'),
    ('b?', 'yes'),
    ('c?', 'no'),
    ('d?', 'no '),
    ('e?', 'n\u00e9'),
    ('f?', 'ne\u0301'),
  )
  write('test.jsonl', ('b?', 'yes'), ('new?', 'no'), ('a?', 'no'))
  said = prepare('rows.jsonl', test='test.jsonl', labels=())
  assert '2 of 3 inputs of test are inputs of train too' in said
  assert "'Yes' 1 times, 'yes' 2 times" in said
  for label in ('n\u00e9', 'ne\u0301'):  # which look alike
    assert f'{label!r} 1 times' in said
  clean = prepare(
    'test.jsonl', data_dir='other', labels=('yes', 'no'), benchmark='clean'
  )
  assert 'inputs of' not in clean and 'differ by case' not in clean


def test_numbers_in_two_spellings_are_told(prepare, tmp_path):
  answers = ['20', '20.0', '+20', '7', '1,000', '1000', '20.5', 'x', '(20)']
  answers += ['1,5', '15']  # a decimal comma
  lines = [
    json.dumps({'question': f'{i}?', 'answer': answer})
    for i, answer in enumerate(answers)
  ]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(lines))
  said = prepare('rows.jsonl', test='rows.jsonl', validation='rows.jsonl')
  assert (
    "are different texts to learn: '20' 3 times, '20.0' 3 times, '+20' 3"
    " times; '1,000' 3 times, '1000' 3 times. Make them one"
  ) in said
  assert "'15'" not in said
  assert '20.5' not in said and 'differ by case' not in said


def test_labels_that_no_answer_could_say_are_told(prepare, tmp_path):
  answers = ['St. Louis', 'Rome', 'Mt. Airy', 'a U.S. state', 'St. Louis']
  answers.append('He ran.')
  lines = [
    json.dumps({'question': f'{i}?', 'answer': answer})
    for i, answer in enumerate(answers)
  ]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(lines))
  files = {'test': 'rows.jsonl', 'validation': 'rows.jsonl', 'labels': ()}
  said = prepare('rows.jsonl', **files)
  assert '15 labels would not be read back' in said
  assert "'St. Louis' reads 'St', so that right" in said
  said = prepare('rows.jsonl', answer='#### {label}', data_dir='x', **files)
  assert 'read back' not in said


def _wrong(tmp_path, name, *lines):
  (tmp_path / name).write_text('\n'.join(('question,answer', *lines)) + '\n')


def test_all_blank_labels_are_told_at_once(prepare, tmp_path):
  _wrong(
    tmp_path, 'rows.csv', *(f'q{i},{"" if i % 3 else "a"}' for i in range(30))
  )
  with pytest.raises(contract.UserError) as caught:
    prepare()
  assert str(caught.value).startswith(f'{tmp_path}/rows.csv:3 cannot be read')
  assert str(caught.value).endswith(
    'Fix or drop the row. The same in 19 more rows: rows.csv:4, rows.csv:6,'
    ' rows.csv:7, rows.csv:9, rows.csv:10 and 14 others.'
  )


def test_rows_that_are_wrong_otherwise_are_counted(prepare, tmp_path):
  _wrong(tmp_path, 'rows.csv', 'q,a', 'q,', 'q,a,b', 'q,a', '"q"x,a', 'q,')
  with pytest.raises(contract.UserError) as caught:
    prepare()
  assert 'the label is blank' in str(caught.value)
  assert 'The same in 1 more rows: rows.csv:7.' in str(caught.value)
  assert (
    f'Wrong otherwise: 2 more rows, the first: {tmp_path}/rows.csv:4 has 3'
    ' cells' in str(caught.value)
  )


def test_broken_json_lines_are_told_at_once(prepare, tmp_path):
  good = json.dumps({'question': 'q', 'answer': 'a'})
  lines = [good, '{"question"', good, '{"question"']
  (tmp_path / 'rows.jsonl').write_text('\n'.join(lines))
  with pytest.raises(contract.UserError, match=r':2 reads .* rows\.jsonl:4\.'):
    prepare('rows.jsonl')


def test_one_wrong_row_is_told_as_ever(prepare, tmp_path):
  _wrong(tmp_path, 'rows.csv', *(['q,a'] * 20), 'q,')
  with pytest.raises(contract.UserError, match=r'Fix or drop the row\.$'):
    prepare()
