# SPDX-License-Identifier: Apache-2.0
"""`prepare` and `show` say what is in the data, or what is wrong with it."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dsbs_jax import contract
from dsbs_jax.data import register
from dsbs_jax.data.prepared import metadata_file, store, tokens, views
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.preparing import prepare as prepare_lib
from dsbs_jax.preparing import show
from dsbs_jax.runtime import folder_lock
from tests.data import toy
from tests.recordings import hf_folders

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def benchmark_name():
  """A benchmark of yes and no, registered without seqio."""
  with register.without_seqio():
    register.register(
      dataclasses.replace(toy.BENCHMARK, name='evens', labels=())
    )
  return 'evens'


@pytest.fixture
def source_dir(tmp_path):
  """Ten rows with nine completions; one of those cannot be parsed."""
  folder = toy.source(tmp_path / 'rows', num_rows=10)
  lines = [toy.said(i, 'yes') for i in range(8)]
  lines.append({**toy.said(8, 'yes'), 'text': 'No idea.'})
  toy.write_lines(folder / 'llm' / 'train.jsonl', lines)
  toy.write_lines(folder / 'llm' / 'test.jsonl', [toy.said(0, 'yes')])
  return folder


@pytest.fixture
def prepare(benchmark_name, source_dir, tmp_path, capsys):
  """Prepares with some options changed; returns what was printed."""

  def run(**options):
    request = prepare_lib.PrepareConfig(
      **{
        'benchmark': benchmark_name,
        'source': str(source_dir),
        'data_dir': str(tmp_path / 'data'),
        'vocabulary': 'bytes',
        **options,
      }
    )
    prepare_lib.prepare(request)
    return capsys.readouterr().out

  return run


def row_of(printed, name):
  """The cells of the table row that starts with `name`."""
  lines = [line.strip('│ ').split('│') for line in printed.splitlines()]
  cells = [[cell.strip() for cell in line] for line in lines]
  (found,) = [line[1:] for line in cells if line[0] == name]
  return found


def test_rationales_for_wrong_labels_are_kept_and_counted(
  prepare, source_dir, tmp_path
):
  file = source_dir / 'llm' / 'train.jsonl'
  argued = [
    toy.said(i, said, kind='counterfactual', hint='no')
    for i, said in ((0, 'no'), (1, 'no'), (2, 'maybe'), (9, 'no'))
  ]
  with file.open('a') as opened:
    opened.writelines(json.dumps(line) + '\n' for line in argued)
  printed = prepare(splits=('train',))
  assert row_of(printed, 'rationales for a wrong label') == ['1 of 3']
  found = store.read('evens', tmp_path / 'data').examples('train')
  assert [e.counterfactual for e in found if e.counterfactual] == [
    ('no', 'It is 0 for sample 0.')
  ]


def test_counts_and_lengths_are_printed(prepare, tmp_path):
  printed = prepare()
  assert row_of(printed, 'rows') == ['10', '1']
  assert row_of(printed, 'completions') == ['9', '1']
  assert row_of(printed, 'parsed') == ['8', '1']
  assert row_of(printed, 'no_marker') == ['1', '0']
  assert row_of(printed, 'no_completion') == ['1', '0']
  # Nine answered; rows 0, 2, 4 and 6 are even and 8 could not be read.
  assert row_of(printed, 'LLM label accuracy %') == ['44.44', '100.00']
  inputs = len('[label] is 0 even?') + 1
  lengths = [line for line in printed.splitlines() if 'gt_label' in line]
  assert lengths[0].split('│')[3].strip() == '3.50'  # yes 4, no 3
  (first,) = [
    line for line in printed.splitlines() if '│ train │ input' in line
  ]
  assert first.split('│')[-2].strip() == str(inputs)
  opened = store.read('evens', tmp_path / 'data')
  about = opened.metadata
  assert about['teacher'] == 'palm' and about['source'].endswith('rows')
  assert about['splits']['train']['counts']['rows'] == 10
  assert 'prepared:' in printed


def test_the_models_that_wrote_the_completions_are_told(
  prepare, source_dir, tmp_path
):
  models = ['a'] * 5 + ['b'] * 3 + [None] * 2
  path = tmp_path / 'train.jsonl'
  lines = [toy.said(i, 'yes', model=model) for i, model in enumerate(models)]
  toy.write_lines(path, lines)
  printed = prepare(completions=str(path))
  for model, number in (('a', 5), ('b', 3), ('an unnamed model', 2)):
    name = f'completions of {model}'
    assert row_of(printed, name) == [f'{number}', '0']


def test_rationales_that_argue_for_another_label_are_counted_and_dropped(
  prepare, tmp_path
):
  printed = prepare()
  # Each says yes, and every second row is even.
  for words, cells in (
    ('rationale argues for label', ['4', '1']),
    ('rationale argues for another', ['4', '0']),
    ('argues for another label %', ['50.00', '0.00']),
  ):
    assert row_of(printed, words) == cells
  printed = prepare(keep='consistent', overwrite=True)
  assert row_of(printed, 'dropped: argues_for_another_label') == ['4', '0']
  assert row_of(printed, 'examples written') == ['4', '1']
  assert 'rationales to choose from' not in printed


def test_several_rationales_are_counted_kept_and_shown(
  prepare, tmp_path, capsys
):
  path = tmp_path / 'train.jsonl'
  lines = [toy.said(i, 'yes', sample=s) for i in range(10) for s in range(3)]
  toy.write_lines(path, lines)
  printed = prepare(completions=str(path))
  assert row_of(printed, 'rationales to choose from') == ['30', '0']
  assert row_of(printed, 'completions') == ['30', '0']
  config = show.ShowConfig(
    task='evens_gt_dsbs', data_dir=str(tmp_path / 'data'), vocabulary='bytes'
  )
  seen = []
  for rule in (None, 'all', 'shortest'):
    show.show(dataclasses.replace(config, rationale_choice=rule, num=9))
    printed = capsys.readouterr().out
    said = [line for line in printed.splitlines() if 'for sample' in line]
    # The text, and the same text as it is to be compared with.
    seen.append([line.rpartition(' ')[2] for line in said[::2]])
    pieces = [
      line.split('│')[3].strip() for line in printed.splitlines() if '│' in line
    ]
    written = ''.join(pieces).split('<end>')[1::2]
    assert [text[-2:] for text in written] == seen[-1]
  assert seen[0] == seen[2] == ['0.'] * 9
  assert set(seen[1]) == {'0.', '1.', '2.'}


@pytest.mark.parametrize(
  'task, text',
  [
    ('rationale', 'rationales'),
    ('gt_dsbs', 'rationales'),
    ('gt_single', 'rationales'),
    ('llm_finetune', 'labels'),
  ],
)
def test_tasks_of_an_llm_are_not_trained_without_its_answers(
  prepare, source_dir, tmp_path, task, text
):
  few = tmp_path / 'train.jsonl'
  toy.write_lines(few, [toy.said(i, 'yes') for i in range(4)])
  source = tokens.Source(str(tmp_path / 'data'), 'bytes')
  prepare(completions=str(few))
  with pytest.raises(
    contract.UserError,
    match=f'has 4 {text} of an LLM for 10 .*--completions.*--keep=parsed',
  ):
    views.load(f'evens_{task}', 'train', source)
  views.load('evens_gt_finetune', 'train', source)
  views.load(f'evens_{task}', 'test', source)
  prepare(completions=str(few), keep='parsed', overwrite=True)
  views.load(f'evens_{task}', 'train', source)


def test_the_same_request_is_served_once(prepare, tmp_path):
  prepare()
  path = tmp_path / 'data' / 'dsbs_evens' / '1.0.0' / 'metadata.json'
  written = path.stat().st_mtime_ns
  assert 'prepared in' in prepare() and path.stat().st_mtime_ns == written
  with pytest.raises(ValueError, match='with other keep.*--overwrite'):
    prepare(keep='parsed')
  printed = prepare(keep='parsed', overwrite=True)
  assert row_of(printed, 'examples written') == ['8', '1']


def test_a_second_prepare_into_a_folder_is_refused(
  prepare, benchmark_name, tmp_path
):
  path = prepare_lib.lock_file(benchmark_name, str(tmp_path / 'data'))

  def lock():
    return folder_lock.FolderLock(path, doing='held', remedy='')

  with folder_lock.hold(lock()):
    with pytest.raises(
      contract.UserError, match='data is being given evens by'
    ):
      prepare()
    assert list(path.parent.iterdir()) == [path]
  prepare()
  with folder_lock.hold(lock()):
    assert 'is prepared' in prepare()  # it only reads
    with pytest.raises(contract.UserError, match='or give another --data_dir'):
      prepare(overwrite=True)
  assert not path.exists()


@pytest.mark.long
def test_prepares_at_once_leave_the_data_of_one_that_succeeded(tmp_path):
  fractions = ('1.0', '0.5', '0.25', '0.1')
  command = [
    *(sys.executable, '-m', 'dsbs_jax.prepare', '--benchmark=parcels'),
    *('--source=examples/parcels', f'--data_dir={tmp_path}', '--overwrite'),
  ]
  for _ in range(3):
    processes = {
      fraction: subprocess.Popen(
        [*command, f'--fraction={fraction}'],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
      )
      for fraction in fractions
    }
    said = {f: process.communicate()[1] for f, process in processes.items()}
    status = {f: process.returncode for f, process in processes.items()}
    print(f'\n{status}')
    numbers = [str(process.pid) for process in processes.values()]
    for fraction in fractions:
      assert status[fraction] in (0, 2), said[fraction]
      if status[fraction]:
        who = said[fraction].partition('is being given parcels by process ')[2]
        assert who.split()[0] in numbers
    found = store.read('parcels', tmp_path)
    assert status[str(found.metadata['fraction'])] == 0
    for split in found.splits:
      assert len(list(found.examples(split))) == found.num_examples(split)
    names = {path.name for path in tmp_path.iterdir()}
    assert names <= {'dsbs_parcels', 'vocabularies', 'tokens'}


@pytest.mark.parametrize('name', ['train.jsonl', 'llm/test.jsonl'])
def test_files_that_have_changed_are_not_served(prepare, source_dir, name):
  prepare()
  path = source_dir / name
  path.write_text(path.read_text().replace('is', 'IS'))  # as long as before
  with pytest.raises(contract.UserError, match='with other files.*--overwrite'):
    prepare()
  shutil.rmtree(source_dir)
  assert 'prepared in' in prepare()  # without the source, too


def test_labels_that_have_changed_are_not_served(prepare, tmp_path):
  prepare()
  path = tmp_path / 'data' / 'dsbs_evens' / '1.0.0' / 'metadata.json'
  about = json.loads(path.read_text())
  del about['sha256']
  path.write_text(json.dumps({**about, 'labels': ['yes', 'no']}))
  metadata_file.seal(path)
  with pytest.raises(contract.UserError, match='with other labels .*yes'):
    prepare()


def test_a_fraction_is_the_seed_s_own_subset(prepare, tmp_path):
  chosen = []
  for seed in (0, 0, 1):
    prepare(fraction=0.5, subset_seed=seed, overwrite=True)
    opened = store.read('evens', tmp_path / 'data')
    chosen.append([example.index for example in opened.examples('train')])
  assert chosen[0] == chosen[1] != chosen[2]
  assert [len(indices) for indices in chosen] == [5, 5, 5]


def test_a_downloaded_source_is_kept_with_the_data(
  prepare, source_dir, tmp_path
):
  kept = tmp_path / 'data' / 'downloads' / 'rows'
  shutil.make_archive(str(kept), 'zip', source_dir)  # as if downloaded before
  printed = prepare(source='http://host.invalid/sets/rows.zip')
  assert row_of(printed, 'rows') == ['10', '1']


def test_a_trained_vocabulary_writes_the_data(prepare, tmp_path):
  printed = prepare(train_vocab=40).replace('\n', '')
  path = tmp_path / 'data' / 'vocabularies' / 'evens.40.model'
  assert f'--vocabulary={path}' in printed
  vocabulary = vocabularies.load(str(path))
  assert vocabulary.decode(vocabulary.encode('is 3 even?')) == 'is 3 even?'
  assert 2 not in vocabulary.encode('[label] is 3 even?')


def test_a_vocabulary_of_the_rows_that_are_left_says_so(prepare):
  assert 'was trained on the' not in prepare(train_vocab=40)
  printed = ' '.join(
    prepare(train_vocab=40, keep='correct', overwrite=True).split()
  )
  assert 'the vocabulary was trained on the 4 of 10 rows that --keep' in printed


def test_the_trained_vocabulary_is_found_beside_the_data(
  prepare, tmp_path, monkeypatch, capsys
):
  monkeypatch.delenv('DSBS_VOCABULARY', raising=False)
  prepare(train_vocab=40)
  printed = ''.join(prepare(vocabulary=None, overwrite=True).split())
  assert 'lengthsintokensof' in printed and 'evens.40.model' in printed
  data_dir = str(tmp_path / 'data')
  show.show(show.ShowConfig(task='evens_gt_dsbs', data_dir=data_dir, num=1))
  assert 'is 0 even?' in capsys.readouterr().out


def test_a_vocabulary_that_is_replaced_is_kept_for_its_runs(prepare, tmp_path):
  folder = tmp_path / 'data' / 'vocabularies'
  prepare(train_vocab=40)
  before = (folder / 'evens.40.model').read_bytes()
  fingerprint = vocabularies.load(str(folder / 'evens.40.model')).fingerprint
  assert 'it replaces another' not in prepare(train_vocab=40, overwrite=True)
  assert not (folder / 'replaced').exists()
  printed = prepare(train_vocab=40, fraction=0.5, overwrite=True)
  (kept,) = (folder / 'replaced').iterdir()
  assert kept.name == f'evens.40.{fingerprint[:8]}.model'
  assert kept.read_bytes() == before != (folder / 'evens.40.model').read_bytes()
  assert f'need --vocabulary={kept}' in printed.replace('\n', '')
  (folder / 'evens.40.model').write_bytes(b'damaged')
  prepare(train_vocab=40, fraction=0.5, overwrite=True)
  assert list((folder / 'replaced').iterdir()) == [kept]


def test_show_tells_what_each_token_is_trained_on(prepare, tmp_path, capsys):
  prepare()
  show.show(
    show.ShowConfig(
      task='evens_gt_dsbs',
      data_dir=str(tmp_path / 'data'),
      vocabulary='bytes',
      num=2,
    )
  )
  printed = capsys.readouterr().out
  assert '[label] is 0 even?' in printed and '[rationale] is 1 even?' in printed
  cells = [line.split('│') for line in printed.splitlines() if '│' in line]
  terms = [line[5].strip() for line in cells]
  targets = [b'yes', b'It is 0 for sample 0.', b'no', b'It is 1 for sample 0.']
  wanted = []
  for target, term in zip(targets, ['label', 'rationale'] * 2, strict=True):
    wanted += [term] * (len(target) + 1)
  assert terms == wanted
  assert {line[6].strip() for line in cells} == {'1'}
  assert cells[0][2].strip() == '<start>' and cells[3][3].strip() == '<end>'


@pytest.mark.parametrize(
  'options, message',
  [
    ({'benchmark': ''}, '--benchmark is missing'),
    ({'fraction': 0.0}, r'--fraction is 0.0, expected a number in \(0, 1\]'),
    ({'keep': 'some'}, "--keep is 'some', expected one of all, parsed"),
    ({'train_vocab': 3}, '--train_vocab is 3'),
    ({'splits': ['dev']}, '--splits names dev, expected some of train, test'),
    ({'source': '/no/where'}, '/no/where'),
    ({'source': 'ftp://host/x'}, r'expected http\(s\)'),
    ({'vocabulary': '/no/file.model'}, 'is not a file'),
  ],
)
def test_wrong_requests_are_clear_errors(prepare, options, message):
  with pytest.raises((ValueError, OSError), match=message):
    prepare(**options)


def test_wrong_input_ends_a_command_with_one_line_and_status_2(tmp_path):
  for command in (
    ['dsbs_jax.prepare', '--benchmark=cqx', '--source=x', '--data_dir=y'],
    ['dsbs_jax.show', '--task=cqa_gt_dsbs', f'--data_dir={tmp_path}'],
  ):
    done = subprocess.run(
      [sys.executable, '-m', *command],
      capture_output=True,
      text=True,
      cwd=REPOSITORY,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith('error: ')
    assert 'Traceback' not in done.stderr


@pytest.mark.long
def test_commonsense_qa_is_the_paper_s(shared_dir, tmp_path, capsys):
  spec = str(shared_dir / 'data' / 't5' / 'sentencepiece.model')
  prepare_lib.prepare(
    prepare_lib.PrepareConfig(
      benchmark='cqa',
      source=str(shared_dir / 'data' / 'datasets'),
      data_dir=str(tmp_path),
      vocabulary=spec,
    )
  )
  printed = capsys.readouterr().out
  accuracy = row_of(printed, 'LLM label accuracy %')
  assert (accuracy[0], accuracy[2:]) == ('74.26', ['73.85', '77.23'])
  assert row_of(printed, 'rows') == ['9,741', '8,766', '975', '1,221']
  source = tokens.Source(str(tmp_path), spec)
  splits = {
    split: tokens.load('cqa_gt_label', split, source)
    for split in ('train', 'validation', 'test')
  }
  valid = splits['validation'].index
  assert valid[:5].tolist() == [4032, 2432, 4722, 1506, 47]
  both = np.concatenate([splits['train'].index, valid])
  assert sorted(both.tolist()) == list(range(9741))
  # Over the 9,741 rows of the file: 2.90 and 30.93 tokens on average.
  means = []
  for task in ('cqa_gt_label', 'cqa_rationale'):
    lengths = [
      tokens.load(task, split, source).targets.lengths
      for split in ('train', 'validation')
    ]
    means.append(round(float(np.concatenate(lengths).mean()), 2))
  assert means == [2.90, 30.93]
  golden = shared_dir / 'golden' / 'original'
  source = tokens.Source(str(tmp_path), str(golden / 'tiny.4k.model'), 'code')
  recorded = np.load(golden / 'loss_trajectory_cqa.npz')
  _assert_tokens_equal('cqa', ('train', 'validation'), source, recorded)


def test_the_bundled_benchmark_is_tokenised_as_recorded(tmp_path):
  vocabulary = str(hf_folders.BUNDLED / 'spiece.model')
  prepare_lib.prepare(
    prepare_lib.PrepareConfig(
      benchmark='parcels',
      source=str(REPOSITORY / 'examples' / 'parcels'),
      data_dir=str(tmp_path),
      vocabulary=vocabulary,
    )
  )
  source = tokens.Source(str(tmp_path), vocabulary, 'code')
  recorded = np.load(hf_folders.BUNDLED / 'batches.npz')
  _assert_tokens_equal('parcels', ('train',), source, recorded)


def _assert_tokens_equal(name, splits, source, recorded):
  """The original code's 800 first pairs are ours, id for id."""
  for view, task in (('pred', 'gt_label'), ('expl', 'rationale')):
    ours = {}
    for split in splits:
      data = tokens.load(f'{name}_{task}', split, source)
      for i, index in enumerate(data.index.tolist()):
        ours[index] = (data.inputs[i].tolist(), data.targets[i].tolist())
    inputs, mask, labels = (
      np.concatenate(recorded[f'{view}_{key}'])
      for key in ('input_ids', 'attention_mask', 'labels')
    )
    assert len(inputs) == 800
    for row in range(800):
      ids, targets = inputs[row][mask[row] > 0], labels[row]
      wanted = (ids.tolist(), targets[targets >= 0].tolist())
      assert ours[row] == wanted
