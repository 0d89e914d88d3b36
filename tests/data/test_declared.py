# SPDX-License-Identifier: Apache-2.0
"""A description is as good as a module in Python, or an error."""

import dataclasses
import json

import pytest

from dsbs_jax import contract
from dsbs_jax.data import declared, register
from dsbs_jax.data.prepared import dataset_writer, store
from dsbs_jax.data.source import sources
from tasks import cqa
from tests.data import seqio_process, small_prepared, toy

SAID = declared.Description(
  name='said',
  source='/rows',
  splits={'train': ('rows.csv',)},
  input='{q}',
  label='{a}',
  labels=('yes', 'no'),
)


def prepare(data_dir, said=SAID):
  """A dataset whose rows nobody cares about, with this description."""
  dataset_writer.write(
    said.name,
    {'train': small_prepared.examples('train', name='cqa')},
    data_dir=data_dir,
    about={declared.KEY: said.to_json()},
    overwrite=True,
  )
  return str(data_dir)


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
  monkeypatch.setattr(register._STATE, 'settings', {})
  monkeypatch.setenv('DSBS_DATA_DIR', '/no/where')


def test_a_description_is_found_by_its_folder(tmp_path, monkeypatch):
  with pytest.raises(contract.UserError, match="'said'.*prepared from --rows"):
    register.benchmark('said', data_dir=str(tmp_path))
  data_dir = prepare(tmp_path / 'a')
  found = register.benchmark('said', data_dir=data_dir)
  assert found.split_names() == ('train', 'validation', 'test')
  assert found.labels == ('yes', 'no')
  assert register.benchmark('said', data_dir=data_dir) is found
  assert register.benchmark('said') is found  # known by now
  assert declared.source('said') == '/rows'
  assert declared.source('said', data_dir) == '/rows'
  assert declared.source('cqa') is None
  other = dataclasses.replace(SAID, label='{b}', labels=(), source='/other')
  elsewhere = prepare(tmp_path / 'b', other)
  changed = register.benchmark('said', data_dir=elsewhere)
  assert changed is not found and changed.labels == ()
  assert declared.source('said', data_dir) == '/rows'
  monkeypatch.setenv('DSBS_DATA_DIR', data_dir)
  assert register.benchmark('said', data_dir=data_dir).labels == ('yes', 'no')


def test_a_benchmark_in_python_keeps_its_name(tmp_path):
  data_dir = prepare(tmp_path, dataclasses.replace(SAID, name='cqa'))
  assert register.benchmark('cqa', data_dir=data_dir) is cqa.BENCHMARK
  with pytest.raises(contract.UserError, match="named 'cqa' exists already"):
    register.declare(dataclasses.replace(SAID, name='cqa'))


def test_descriptions_survive_json(tmp_path):
  values = json.loads(json.dumps(SAID.to_json()))
  assert declared.from_json(values, 'here').to_json() == SAID.to_json()
  for wrong, message in (
    ({**values, 'version': 2}, 'here describes .* version 2, expected 1'),
    ({**values, 'more': 1}, 'here has a description that cannot be read'),
    ({'version': 1}, 'here has a description that cannot be read'),
    ({**values, 'input': 5}, 'here has a description that cannot be read'),
    (5, 'here describes a benchmark in version 5'),
  ):
    with pytest.raises(contract.UserError, match=message):
      declared.from_json(wrong, 'here')


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'input': 'a question'}, "--input is 'a question', expected a column in"),
    ({'label': '{a'}, 'alone at position'),
    ({'labels': ('yes',)}, '--labels is .*two or more different'),
    ({'labels': ('yes', 'yes', 'no')}, '--labels is'),
    ({'labels': ('yes', ' ')}, '--labels is'),
    ({'options': ('o',)}, '--labels and --options are both given'),
    ({'metric': 'f1'}, "--metric is 'f1', expected exact_match or equation_"),
    ({'answer': 'The answer'}, "--answer is 'The answer', expected {label} in"),
    ({'answer': '{label} {label}'}, '--answer is'),
    ({'answer': '{label}.'}, '--answer is .*with text before'),
  ],
)
def test_wrong_descriptions_are_errors(changes, message):
  with pytest.raises(contract.UserError, match=message):
    dataclasses.replace(SAID, **changes)


def rows_of(tmp_path, lines, **changes):
  toy.write_lines(tmp_path / 'rows.jsonl', lines)
  said = dataclasses.replace(
    SAID, source=str(tmp_path), splits={'train': ('rows.jsonl',)}, **changes
  )
  made = declared.make(said)
  return list(sources.read_rows(made, said.source, 'train'))


def test_ids_and_labels_are_the_cells(tmp_path):
  lines = [{'q': 'x', 'a': ' yes ', 'n': 7}, {'q': 'y', 'a': 'no', 'n': 'b'}]
  rows = rows_of(tmp_path, lines, id='n')
  assert [(r.example_id, r.gt_label) for r in rows] == [
    ('7', 'yes'),
    ('b', 'no'),
  ]
  lines = [{'q': 'x', 'a': 5, 'b': 2}]
  (row,) = rows_of(tmp_path, lines, labels=(), label='{a}/{b}')
  assert (row.example_id, row.gt_label) == ('train-0', '5/2')


@pytest.mark.parametrize(
  'line, changes, message',
  [
    ({'a': 'yes'}, {}, "rows.jsonl:1 .*no field 'q'"),
    ({'q': 'x', 'a': 'maybe'}, {}, "has the label 'maybe', expected one of 'ye"),
    ({'q': 'x', 'a': None}, {}, 'the label is blank'),
    ({'q': 'x', 'a': ['yes']}, {}, "the cell of 'a' is a list"),
    ({'q': {'t': 1}, 'a': 'yes'}, {}, "the cell of 'q' is a dict"),
    ({'q': 'x', 'a': 'yes', 'n': None}, {'id': 'n'}, "the id is ''"),
    (
      {'q': 'x', 'a': '1,000'},
      {'labels': (), 'metric': 'equation_accuracy'},
      "the label '1,000' is no number or equation",
    ),
    (
      {'q': 'x', 'a': 'b', 'o': '["a", "b"]'},
      {'labels': (), 'options': ('o',)},
      'expected a list; for a table of texts name one column per choice',
    ),
    (
      {'q': 'x', 'a': '2', 'o': ['a', 'b']},
      {'labels': (), 'options': ('o',)},
      "has the label '2', expected one of 'a', 'b'",
    ),
  ],
)  # fmt: skip
def test_wrong_rows_are_errors_with_their_place(
  tmp_path, line, changes, message
):
  with pytest.raises(contract.UserError, match=message):
    rows_of(tmp_path, [line], **changes)


def test_choices_are_a_list_or_one_column_each(tmp_path):
  options = {'labels': (), 'input': r'{q}\n{o}', 'options': ('o',)}
  lines = [{'q': 'x', 'a': a, 'o': ['oven', 'b']} for a in ('oven', 'A', 'b')]
  rows = rows_of(tmp_path, lines, **options)
  assert [row.gt_label for row in rows] == ['oven', 'oven', 'b']
  assert rows[0].input == 'x\n(a) oven\n(b) b'
  line = {'q': 'x', 'a': 'c', 'o1': 'oven', 'o2': 'fridge', 'o3': 'box'}
  several = {'labels': (), 'options': ('o1', 'o2', 'o3')}
  (row,) = rows_of(tmp_path, [line], **several)
  assert row.gt_label == 'box'
  made = declared.make(dataclasses.replace(SAID, **several))
  assert made.options({**line, 'o3': ''}) == ['oven', 'fridge']


def test_a_letter_names_a_column_though_one_before_it_is_blank(tmp_path):
  several = {'labels': (), 'options': ('o1', 'o2', 'o3')}
  line = {'q': 'x', 'a': 'c', 'o1': '', 'o2': 'fridge', 'o3': 'box'}
  (row,) = rows_of(tmp_path, [line], **several)
  assert row.gt_label == 'box'
  with pytest.raises(contract.UserError, match="label 'A', expected.*'fridge'"):
    rows_of(tmp_path, [{**line, 'a': 'A'}], **several)


def test_commonsense_qa_needs_no_python(tmp_path):
  archive = toy.ARCHIVE
  said = declared.Description(
    name='said',
    source=str(archive),
    splits={'train': ('cqa_train.json',)},
    input=r'{question}\nAnswer Choices:\n{choices}',
    label='{answer}',
    options=('choices',),
    id='id',
    answer='So the answer is {label}.',
  )
  ours, theirs = (
    list(sources.Examples(made, archive, split='train', completions=None))
    for made in (
      dataclasses.replace(declared.make(said), derive_test=False),
      cqa.BENCHMARK,
    )
  )
  assert len(ours) == len(theirs) > 0
  for one, other in zip(ours, theirs, strict=True):
    for field in ('index', 'example_id', 'input', 'gt_label', 'options'):
      assert getattr(one, field) == getattr(other, field)


def test_numbers_are_compared_by_value():
  made = declared.make(
    dataclasses.replace(SAID, labels=(), metric='equation_accuracy')
  )
  assert made.metric(['42'], ['84 / 2']) == {'accuracy': 100.0}
  assert made.vote('42.0') == made.vote('42')
  assert not made.well_formed('many')


def test_seqio_gets_the_tasks_of_every_description(tmp_path):
  prepare(tmp_path)
  (tmp_path / 'dsbs_torn' / store.VERSION).mkdir(parents=True)
  (tmp_path / 'dsbs_torn' / store.VERSION / 'metadata.json').write_text('{')
  code = (
    'import seqio, tasks.declared\n'
    'task = seqio.get_mixture_or_task("said_gt_label")\n'
    'print(task.num_input_examples("train"))\n'
    'print(len(seqio.get_mixture_or_task("said_gt_dsbs").tasks))\n'
  )
  found = seqio_process.run(
    code, tmp_path / 'printed', DSBS_DATA_DIR=str(tmp_path)
  )
  assert found.split() == ['45', '2']
