# SPDX-License-Identifier: Apache-2.0
"""A benchmark and a student are enough for a run; what is chosen is said."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from dsbs_jax.core import network
from dsbs_jax.data.prepared import store
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.interop import same_network, t5x_write_checkpoint
from dsbs_jax.interop.hf import hf_checkpoint
from dsbs_jax.runs import run_folder
from dsbs_jax.runtime import gin_files
from dsbs_jax.training import loop, start
from tests.claims import doors
from tests.core.gemma import recorded_gemma
from tests.inference import small_student
from tests.recordings import hf_folders

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MODEL = dataclasses.replace(small_student.MODEL, num_buckets=16)


def _params():
  return jax.tree.map(np.asarray, small_student.params(MODEL))


@pytest.fixture
def train(monkeypatch, small_data, tmp_path):
  """Calls `dsbs train`, up to the start: settings, config, what is said."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv('DSBS_VOCABULARY', raising=False)
  started = {}

  def note(run, *, config_text):
    started['run'], started['config'] = run, config_text

  monkeypatch.setattr(loop, 'train', note)

  def call(*flags):
    given = [f'--data_dir={small_data}', '--out=runs/a', *flags]
    done = doors.call('dsbs_jax.train', *given)
    return started.get('run'), started.get('config'), done

  return call


@pytest.fixture
def student(tmp_path):
  """A folder of Hugging Face's, with a tokenizer."""
  folder = tmp_path / 'pretrained'
  hf_checkpoint.save_hf(folder, _params(), MODEL)
  (folder / 'tokenizer_config.json').write_text(
    json.dumps({'tokenizer_class': 'ByT5Tokenizer', 'extra_ids': 100})
  )
  return folder


def test_without_a_student_a_size_and_its_rate_are_chosen_and_said(train):
  run, _, done = train('--benchmark=svamp', '--vocabulary=bytes')
  assert run.mixture_or_task_name == 'svamp_gt_dsbs'
  assert (run.model.emb_dim, run.model.num_encoder_layers) == (256, 4)
  assert (run.learning_rate, run.initial_checkpoint_path) == (1e-3, None)
  # All else is the recipe.
  assert (run.train_steps, run.batch_size) == (10_000, 64)
  assert 'student     mini, ' in done.stderr and 'random' in done.stderr
  assert '0.001 (for random parameters; --lr sets another)' in done.stderr
  assert "human labels and an LLM's rationales" in done.stderr


def test_a_folder_gives_network_vocabulary_and_parameters(train, student):
  run, config, done = train('--benchmark=svamp', '--student=pretrained')
  assert run.model == MODEL and run.learning_rate == 5e-5
  macros = run_folder.parse_macros(config)
  assert macros['INITIAL_CHECKPOINT_PATH'] == str(student)
  assert macros['VOCABULARY'] == str(student)
  assert 'for random parameters' not in done.stderr
  # A flag overrides what the folder says.
  run, _, _ = train(
    *('--benchmark=svamp', '--student=pretrained', '--vocabulary=bytes:5'),
    '--lr=1e-4',
  )
  assert (run.vocabulary, run.learning_rate) == ('bytes:5', 1e-4)


def test_what_stands_around_inputs_is_said_once(train, student):
  (student / 'tokenizer_config.json').unlink()
  flags = '--benchmark=svamp', '--student=pretrained'
  gemma = f'--vocabulary={student}/some.model:0'
  (student / 'some.model').touch()
  run, config, _ = train(
    *flags, gemma, '--input_format=turns', '--gin.VOCAB_SIZE=384'
  )
  spec = f'{student}/some.model:0#turns'
  assert run.vocabulary == spec
  assert run_folder.parse_macros(config)['VOCABULARY'] == spec
  run, _, _ = train(
    *flags,
    '--vocabulary=a.model',
    '--input_format=Q: {input}\\nA: ',
    '--gin.VOCAB_SIZE=384',
  )
  assert run.vocabulary == 'a.model#Q: {input}\nA: '
  _, _, done = train(*flags, '--gin.VOCABULARY=a.model', '--input_format=turns')
  assert done.status == 2 and 'Add it there: a.model#turns' in done.stderr
  _, _, done = train(*flags, gemma, '--input_format=chat')
  assert done.status == 2
  assert "'chat', expected one of ['turns'], or a text with" in done.stderr


def test_a_folder_of_a_umt5_says_that_tables_are_per_layer(train, tmp_path):
  hf_folders.of_kind(tmp_path / 'umt5', 'transformers5', 'umt5')
  run, config, _ = train(
    '--benchmark=svamp',
    '--student=umt5',
    '--vocabulary=bytes:0',
    '--gin.VOCAB_SIZE=96',
  )
  assert run.model.relpos_bias_per_layer
  assert run_folder.parse_macros(config)['RELPOS_BIAS_PER_LAYER'] is True
  run, _, _ = train(
    '--benchmark=svamp', '--student=umt5_small', '--vocabulary=bytes:0'
  )
  assert run.model.relpos_bias_per_layer and run.model.vocab_size == 384


def test_a_folder_without_a_tokenizer_needs_a_vocabulary(train, student):
  (student / 'tokenizer_config.json').unlink()
  _, _, done = train('--benchmark=svamp', '--student=pretrained')
  assert done.status == 2 and 'Add --vocabulary=FILE' in done.stderr
  run, _, _ = train(
    '--benchmark=svamp', '--student=pretrained', '--vocabulary=bytes'
  )
  assert run.vocabulary == 'bytes'


def test_a_checkpoint_of_t5x_says_its_network_in_its_config(train, tmp_path):
  place = tmp_path / 't5x' / 'checkpoint_9'
  t5x_write_checkpoint.save(str(place.parent), _params(), MODEL, step=9)
  fields = '\n'.join(
    f'network.T5Config.{name} = {getattr(MODEL, name)!r}'
    for name in start.same_network.FIELDS
  )
  (tmp_path / 't5x' / 'config.gin').write_text(fields)
  run, config, _ = train(
    '--benchmark=svamp', '--student=t5x/checkpoint_9', '--vocabulary=bytes'
  )
  assert run.model == MODEL
  assert run.initial_checkpoint_path == str(place)
  assert run.learning_rate == 5e-5


@pytest.mark.parametrize('name', gin_files.models())
def test_each_model_file_is_a_size_for_random_parameters(name):
  network = start.named_network(name)
  needed = {'emb_dim', 'mlp_activations', 'logits_via_embedding'}
  if 'gemma' in name:
    needed = same_network.GEMMA_FIELDS.keys() - {'vocab_size'}
  assert needed <= set(network)


def test_an_unknown_student_lists_the_sizes(train):
  _, _, done = train('--benchmark=svamp', '--student=smal')
  assert done.status == 2
  assert "--student is 'smal', expected a folder" in done.stderr
  assert 'mini, mt5_small, nano, small' in done.stderr


def test_flags_are_stored_so_that_later_verbs_find_all(train, tmp_path):
  (tmp_path / 'of_start.py').write_text('')
  _, config, _ = train(
    *(
      '--benchmark=svamp',
      '--student=nano',
      '--module=of_start.py',
      '--alpha=0.3',
    ),
    *('--vocabulary=bytes', '--steps=7', '--batch=4', '--seed=3', '--lr=2e-3'),
  )
  macros = run_folder.parse_macros(config)
  expected = {
    'MODULE': str(tmp_path / 'of_start.py'),
    'MODEL_DIR': 'runs/a',
    'ALPHA': 0.3,
    'TRAIN_STEPS': 7,
    'BATCH_SIZE': 4,
    'SEED': 3,
    'LEARNING_RATE': 2e-3,
  }
  assert {name: macros[name] for name in expected} == expected
  assert pathlib.Path(macros['DATA_DIR']).is_absolute()


@pytest.mark.parametrize(
  ('flag', 'said'),
  [
    ('--alpha=2', '--alpha=2.0: alpha is 2.0'),
    ('--steps=0', '--steps=0: train_steps is 0'),
  ],
)
def test_a_wrong_flag_is_shown_as_it_was_typed(train, flag, said):
  flags = '--benchmark=svamp', '--student=nano', '--vocabulary=bytes'
  _, _, done = train(*flags, flag)
  assert done.status == 2
  assert f'error: {said}' in done.stderr


def test_gin_stands_beside_the_flags(train, tmp_path):
  flags = '--benchmark=svamp', '--vocabulary=bytes', '--steps=7'
  run, _, done = train(
    *flags,
    f'--gin_file={REPOSITORY}/gin/models/tiny.gin',
    f'--gin_file={REPOSITORY}/gin/optimizers/adafactor.gin',
    '--gin.TRAIN_STEPS=9',
  )
  assert (run.model.emb_dim, run.train_steps) == (128, 9)
  assert run.optimizer.__name__ == 'adafactor'
  assert 'as gin sets it' in done.stderr
  # A checkpoint that gin names is not a random start.
  run, _, _ = train(*flags, '--gin.INITIAL_CHECKPOINT_PATH=/pretrained')
  assert run.learning_rate == 5e-5


def test_gin_files_alone_say_no_more_than_before(train, monkeypatch):
  monkeypatch.setattr(start, 'defaults', None)
  done = doors.call(
    'dsbs_jax.train',
    '--gin_file=gin/train.gin',  # ours: the current folder has none
    '--gin_file=gin/models/tiny.gin',
    '--gin_file=gin/benchmarks/svamp.gin',
    '--gin.MODEL_DIR=a',
    '--gin.VOCABULARY=bytes',
  )
  assert (done.status, done.stderr) == (0, '')


def test_without_completions_it_is_finetuning(train, small_data, monkeypatch):
  read = store.read
  monkeypatch.setattr(
    store,
    'read',
    lambda *a: dataclasses.replace(
      read(*a), metadata={'splits': {'train': {'counts': {'answered': 0}}}}
    ),
  )
  run, _, done = train('--benchmark=svamp', '--vocabulary=bytes')
  assert run.mixture_or_task_name == 'svamp_gt_finetune'
  assert 'svamp_gt_finetune: human labels\n' in done.stderr


def test_the_labels_may_be_those_of_the_llm(train):
  run, _, done = train(
    '--benchmark=svamp', '--vocabulary=bytes', '--labels_of=llm'
  )
  assert run.mixture_or_task_name == 'svamp_llm_dsbs'
  assert "an LLM's labels and an LLM's rationales" in done.stderr


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      ('--task=svamp_gt_dsbs', '--labels_of=llm'),
      "--labels_of is 'llm' beside the task 'svamp_gt_dsbs'",
    ),
    (
      ('--gin_file=gin/benchmarks/svamp.gin', '--labels_of=llm'),
      "--labels_of is 'llm' beside the task 'svamp_gt_dsbs'",
    ),
    (
      ('--benchmark=cqa', '--gin.MIXTURE_OR_TASK_NAME=svamp_gt_dsbs'),
      "--benchmark is 'cqa' beside the task 'svamp_gt_dsbs'",
    ),
  ],
)
def test_a_task_is_said_once(train, flags, message):
  run, _, done = train('--vocabulary=bytes', *flags)
  assert (run, done.status) == (None, 2)
  assert message in done.stderr
  done = doors.call('dsbs_jax.train', '--gin_file=gin/train.gin', *flags)
  assert done.status == 2 and message in done.stderr


def test_the_vocabulary_that_prepare_trained_is_taken(
  small_data, tmp_path, monkeypatch
):
  monkeypatch.delenv('DSBS_VOCABULARY', raising=False)
  data = shutil.copytree(small_data, tmp_path / 'data')
  folder = data / 'vocabularies'
  folder.mkdir(exist_ok=True)
  request = start.Request(benchmark='svamp', data_dir=str(data))

  def vocabulary():
    return start.defaults(request).fields['TrainConfig'].get('vocabulary')

  assert vocabulary() is None
  model = folder / 'svamp.64.model'
  model.touch()
  (folder / 'cqa.64.model').touch()
  assert vocabulary() == str(model)
  monkeypatch.setenv('DSBS_VOCABULARY', 'bytes')
  assert vocabulary() is None
  monkeypatch.delenv('DSBS_VOCABULARY')
  (folder / 'svamp.128.model').touch()
  with pytest.raises(ValueError, match='2 vocabularies of svamp, expected one'):
    vocabulary()


def test_a_spec_keeps_its_number_and_its_names(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a.model').touch()
  assert start.absolute_spec('a.model:0') == f'{tmp_path}/a.model:0'
  assert start.absolute_spec('bytes:7') == 'bytes:7'
  assert start.absolute_spec('gs://bucket/a.model') == 'gs://bucket/a.model'
  assert vocabularies.load('bytes:7')


def test_a_run_needs_a_folder(train):
  done = doors.call('dsbs_jax.train', '--benchmark=svamp')
  assert done.status == 2 and '--out is missing' in done.stderr


def test_nothing_to_train_on_is_an_error(train):
  done = doors.call('dsbs_jax.train')
  assert done.status == 2 and 'expected --benchmark=NAME' in done.stderr
  _, _, done = train('--vocabulary=bytes')
  assert done.status == 2
  assert 'expected --benchmark=NAME' in done.stderr


def test_a_gemma_is_chosen_by_its_size_or_its_folder(train, tmp_path):
  flags = '--benchmark=svamp', '--vocabulary=bytes'
  run, config, done = train(*flags, '--student=gemma3_nano')
  assert isinstance(run.model, network.GemmaConfig)
  assert (run.model.num_kv_heads, run.model.dropout_rate) == (1, 0.0)
  assert 'gemma3_nano' in done.stderr and 'random' in done.stderr
  assert run_folder.parse_macros(config)['FAMILY'] == 'gemma3'
  shutil.copytree(recorded_gemma.FOLDER, tmp_path / 'gemma')
  run, config, done = train(*flags, '--student=gemma')
  assert run.model == recorded_gemma.CONFIG and run.learning_rate == 5e-5
  assert run.initial_checkpoint_path == str(tmp_path / 'gemma')
  run, config, done = train(*flags, '--student=t5gemma2_nano')
  assert run.model.has_encoder and run.model.global_rope_factor == 8.0
  assert run_folder.parse_macros(config)['FAMILY'] == 't5gemma2'
  shutil.copytree(recorded_gemma.T5GEMMA2.folder, tmp_path / 't5gemma')
  run, config, done = train(*flags, '--student=t5gemma')
  assert run.model == recorded_gemma.T5GEMMA2.config
  # Settings of the other family are errors, as misspelt ones are.
  for student, macro in (
    ('gemma3_nano', 'NUM_DECODER_LAYERS'),
    ('nano', 'WINDOW'),
  ):
    _, _, done = train(*flags, f'--student={student}', f'--gin.{macro}=2')
    assert done.status == 2 and f'{macro} is read by nothing' in done.stderr
  _, _, done = train(*flags, '--student=nano', "--gin.FAMILY='gemma9'")
  assert done.status == 2 and "FAMILY is 'gemma9', expected" in done.stderr
  assert "['gemma3', 't5gemma2']" in done.stderr
