# SPDX-License-Identifier: Apache-2.0
"""One call gives a benchmark its seqio tasks; importing reads nothing."""

import copy
import pathlib
import pickle
import subprocess
import sys

import pytest
import seqio
import tensorflow as tf

from dsbs_jax.data import benchmark, register
from dsbs_jax.data.vocabulary import vocabularies, vocabulary_files
from tests.data import seqio_process

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TASKS = (
  'cqa_gt_finetune',
  'cqa_llm_finetune',
  'cqa_gt_label',
  'cqa_llm_label',
  'cqa_rationale',
  'cqa_verdict',
  'cqa_gt_single',
  'cqa_llm_single',
  'cqa_gt_answer_first',
  'cqa_llm_answer_first',
)


@pytest.fixture
def unset(monkeypatch):
  """No configured values, whatever other tests did."""
  monkeypatch.setattr(register._STATE, 'settings', {})
  for variable in ('DSBS_DATA_DIR', 'DSBS_VOCABULARY', 'DSBS_PREFIXES'):
    monkeypatch.delenv(variable, raising=False)
  return monkeypatch


def test_the_names_are_those_of_the_table():
  cqa = register.benchmark('cqa')
  register.build()
  for task in TASKS:
    assert task in seqio.TaskRegistry.names()
    scored = seqio.TaskRegistry.get(task).metric_fns
    unscored = task in ('cqa_rationale', 'cqa_verdict')
    assert scored == ([] if unscored else [cqa.metric])
    assert f' {{b}}{task[3:]} ' in register.__doc__
  for source in ('gt', 'llm'):
    mixture = seqio.MixtureRegistry.get(f'cqa_{source}_dsbs')
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {f'cqa_{source}_label': 1.0, 'cqa_rationale': 1.0}


def test_registering_twice_is_harmless_and_two_of_a_name_are_not():
  register.register(register.benchmark('cqa'))
  other = copy.copy(register.benchmark('cqa'))
  with pytest.raises(ValueError, match="named 'cqa' exists already"):
    register.register(other)
  with pytest.raises(ValueError, match='--module=no.such cannot be imported'):
    register.benchmark('mine', module='no.such')
  with pytest.raises(ValueError, match='Did you mean cqa'):
    register.benchmark('cqaa')


def test_an_import_registers_and_reads_no_file(tmp_path):
  code = (
    'import seqio, tasks.cqa\n'
    'task = seqio.get_mixture_or_task("cqa_gt_label")\n'
    'from dsbs_jax.data import register\n'
    'try:\n'
    '  task.get_dataset(None, "train")\n'
    'except ValueError as error:\n'
    '  assert "dsbs_jax.prepare --benchmark=cqa" in str(error), error\n'
    '  print("not prepared")\n'
  )
  found = seqio_process.run(
    code,
    tmp_path / 'printed',
    DSBS_DATA_DIR=str(tmp_path / 'none'),
    DSBS_VOCABULARY=str(tmp_path / 'none.model'),
  )
  assert found.strip() == 'not prepared'


def test_arguments_win_over_configuration_over_environment(unset):
  found = register.source()
  assert found.vocabulary == vocabulary_files.T5_PUBLIC
  assert found.prefixes == 'paper'
  unset.setenv('DSBS_DATA_DIR', '/from/environment')
  unset.setenv('DSBS_PREFIXES', 'code')
  assert register.source().data_dir == '/from/environment'
  register.configure(data_dir='/configured', vocabulary='bytes')
  found = register.source(vocabulary='bytes:0')
  assert found.data_dir == '/configured'
  assert (found.vocabulary, found.prefixes) == ('bytes:0', 'code')
  with pytest.raises(ValueError, match="prefixes is 'both'"):
    register.configure(prefixes='both')
  assert register.source().prefixes == 'code'


def test_the_shared_vocabulary_is_whatever_is_set(unset, source):
  lazy = register.vocabulary()
  register.benchmark('cqa')
  register.build()
  task = seqio.TaskRegistry.get('cqa_gt_label')
  assert task.output_features['targets'].vocabulary == lazy
  for spec, same, other in (
    (
      source.vocabulary,
      seqio.SentencePieceVocabulary(source.vocabulary, 100),
      seqio.SentencePieceVocabulary(source.vocabulary, 0),
    ),
    ('bytes', seqio.ByteVocabulary(100), seqio.ByteVocabulary(0)),
  ):
    register.configure(vocabulary=spec)
    assert lazy == same and lazy != other
    assert lazy.vocab_size == same.vocab_size
    assert (lazy.eos_id, lazy.unk_id, lazy.extra_ids) == (1, 2, same.extra_ids)
    ids = lazy.encode('Ann has pens.')
    assert (
      ids
      == same.encode('Ann has pens.')
      == vocabularies.load(spec).encode('Ann has pens.')
    )
    assert lazy.encode_tf('Ann has pens.').numpy().tolist() == ids
    assert lazy.decode_tf(tf.constant(ids)).numpy().decode() == lazy.decode(ids)
    # gin copies what it is bound to.
    assert copy.deepcopy(lazy) == pickle.loads(pickle.dumps(lazy)) == lazy


def test_benchmarks_are_found_without_seqio():
  code = (
    'import sys\n'
    'from dsbs_jax.data import register\n'
    'print(register.benchmark("svamp").name, "seqio" in sys.modules)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=REPOSITORY
  )
  assert done.stdout.split() == ['svamp', 'False'], done.stderr
  register.benchmark('svamp')
  register.build()
  assert 'svamp_gt_dsbs' in seqio.MixtureRegistry.names()
  assert 'svamp' in benchmark.names()
