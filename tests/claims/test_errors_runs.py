# SPDX-License-Identifier: Apache-2.0
"""Wrong settings of a training run: one clear error, status 2."""

import os
import subprocess
import sys

import pytest

from tests.claims import doors
from tests.claims.errors import FILES, MODEL, REPOSITORY, gin, refused

TRAIN = {
  'macro_typo': ('LERNING_RATE=1', ('--gin.LERNING_RATE=1', 'LEARNING_RATE?')),
  'parameter_typo': (
    'train_config.TrainConfig.bach_size=1',
    ('--gin.train_config.TrainConfig.bach_size=1', 'Did you mean batch_size?'),
  ),
  'name_typo': (
    'train_config.TrainConfg.seed=1',
    ('has no TrainConfg', 'train_config.TrainConfig?'),
  ),
  'reference_typo': ('LAYOUT=@layouts.Pakced', ('has no Pakced', 'Packed?')),
  'macro_reference_typo': ('ALPHA=%ALPA', ('%ALPA has no value', 'ALPHA?')),
  'unused_binding': (
    'layouts.Padded.truncate=True',
    ('--gin.layouts.Padded.truncate=True', 'read by nothing', 'remove it'),
  ),
  'text_for_a_number': (
    'ALPHA=half',
    ('--gin.ALPHA=half: the value cannot be read', 'expected number'),
  ),
  'wrong_text_without_quotes': (
    'PREFIXES=cod',
    ("prefixes is 'cod', expected",),
  ),
  'open_quote': ("PREFIXES='code", ("PREFIXES='code", 'quotes and brackets')),
  'open_bracket': ('LAYOUT=(1', ('--gin.LAYOUT=(1', 'quotes and brackets')),
  'nothing_given': ('--gin.ALPHA', ('--gin.ALPHA sets nothing', 'NAME=VALUE')),
  'not_imported': ('LAYOUT=@packed.X', ('packed is not imported',)),
  'task_typo': (
    "MIXTURE_OR_TASK_NAME='svmp_gt_dsbs'",
    ("benchmark 'svmp' is not prepared", 'prepared there: svamp', '--source'),
  ),
  'task_no_text': (
    'MIXTURE_OR_TASK_NAME=3',
    ('--gin.MIXTURE', 'is 3, expected'),
  ),
  'alpha': ('ALPHA=2', ('--gin.ALPHA=2: alpha is 2', 'in [0, 1]')),
  'alpha_text': ("ALPHA='x'", ("alpha is 'x', expected a number",)),
  'negative_rate': ('LEARNING_RATE=-1', ('learning_rate is -1', '>= 0')),
  'no_rate': ('LEARNING_RATE=None', ('learning_rate is None', '>= 0')),
  'infinite_rate': ('LEARNING_RATE=1e999', ('learning_rate is inf', '>= 0')),
  'no_steps': ('TRAIN_STEPS=0', ('train_steps is 0', '>= 1')),
  'half_a_step': ('TRAIN_STEPS=2.5', ('train_steps is 2.5', 'whole')),
  'true_steps': ('TRAIN_STEPS=True', ('train_steps is True', 'whole')),
  'seed': ('SEED=-1', ('seed is -1', '>= 0')),
  'huge_seed': (f'SEED={10**20}', ('seed is 1000', '< 4,294,967,296')),
  'chunks': ('CHUNK_TOKENS=1.5', ('chunk_tokens is 1.5', 'whole')),
  'paired': ("PAIRED='no'", ("paired is 'no'", 'True or False')),
  'rates_of_pairs': (
    "MIXTURE_RATES={'a': 1}",
    ("rates is {'a': 1}", 'trained in pairs', 'PAIRED=False'),
  ),
  'rationale_rule': (
    "RATIONALE_CHOICE='newest'",
    ("RATIONALE_CHOICE is 'newest'", 'expected one of first, all'),
  ),
  'one_rationale_each': (
    "RATIONALE_CHOICE='all'",
    ('one rationale per row', '--samples=5', '--overwrite'),
  ),
  'optimizer': ('OPTIMIZER=3', ('optimizer is 3', 'reference')),
  'width': ('EMB_DIM=0', ('--gin.EMB_DIM=0', 'emb_dim is 0', '>= 1')),
  'dtype': ("ACTIVATION_DTYPE='f8'", ("dtype is 'f8'", 'float32')),
  'mesh_text': ("MESH='2x'", ("mesh is '2x'", '"4x2"')),
  'mesh_number': ('MESH=4', ('mesh is 4', '"4x2"')),
  'mesh_of_another_size': (
    "MESH='2x3'",
    ('needs 6 devices', 'there', 'Choose'),
  ),
  'lengths_too_short': (
    "TASK_FEATURE_LENGTHS={'inputs': 80, 'targets': 400}",
    (
      'inputs length is 80',
      'of 9 examples',
      'tokens on average',
      'longest has',
    ),
  ),
  'lengths_no_mapping': (
    'TASK_FEATURE_LENGTHS=5',
    ('lengths is 5', "'inputs'"),
  ),
  'lengths_negative': (
    "TASK_FEATURE_LENGTHS={'inputs': -8, 'targets': 4}",
    ('inputs length is -8', '1 or more'),
  ),
  'no_vocabulary': ("VOCABULARY='no.model'", ("'no.model' is not a file",)),
  'small_table': ('VOCAB_SIZE=100', ('359 ids', '--gin.VOCAB_SIZE=384')),
  'splits': ("EVAL_SPLITS=('valid',)", ("('valid',)", 'train, validation')),
  'no_data': ("DATA_DIR='/nowhere'", ("'/nowhere'", 'dsbs_jax.prepare')),
  'cloud_folder': ("MODEL_DIR='hdfs://x'", ("'hdfs://x'", 'folder', 'gs://')),
  'file_for_folder': ("MODEL_DIR='{place}/q.txt'", ('q.txt', 'folder')),
  'no_checkpoint': (
    "INITIAL_CHECKPOINT_PATH='/nowhere'",
    ("checkpoint at '/nowhere'", 'Check the path'),
  ),
}


@pytest.mark.parametrize('name', TRAIN)
def test_train_says_what_is_wrong(place, name):
  flag, parts = TRAIN[name]
  refused(gin('train', place, flag.replace('{place}', str(place))), *parts)


def test_rates_of_a_single_task_are_refused(place):
  task = "MIXTURE_OR_TASK_NAME='svamp_gt_label'"
  ended = gin('train', place, task, "MIXTURE_RATES={'svamp_gt_label': 1}")
  refused(ended, 'expected None: svamp_gt_label is one task', 'PAIRED=False')


@pytest.mark.long  # a name of nobody's is looked for in seqio: TensorFlow
def test_a_form_that_does_not_exist_names_the_nearest(place):
  refused(
    gin('train', place, "MIXTURE_OR_TASK_NAME='svamp_gt_dsb'"),
    "'svamp_gt_dsb' is neither",
    'Did you mean svamp_gt_dsbs',
  )


GIN_FILES = {
  'latin1': (b'EMB_DIM = 3 # \xff', ('byte 0xff at position 14', 'UTF-8')),
  'marked': (b'\xef\xbb\xbfEMB_DIM = 3', ('byte-order mark', 'without one')),
  'unclosed': (b'EMB_DIM = (3\n', ('unclosed.gin:2', 'brackets')),
  'two_equals': (b'\nEMB_DIM == 3\n', ('two_equals.gin:2', 'parse')),
  'binary': (b'\x00\x01', ('binary.gin:1',)),
  'imports': (b'import no_such\n', ('imports.gin:1', "'no_such'")),
  'includes': (b"include 'no.gin'\n", ('includes.gin:1', 'no.gin')),
}


@pytest.mark.parametrize('name', GIN_FILES)
def test_gin_files_are_named_with_their_line(place, name):
  content, parts = GIN_FILES[name]
  file = place / f'{name}.gin'
  file.write_bytes(content)
  ended = gin('train', place, files=(*FILES, str(file)))
  refused(ended, *parts)
  assert ended.stderr.count('\n') == 1  # and nothing else


def test_files_in_another_order_or_of_another_command_are_refused(place):
  refused(
    doors.call(
      'dsbs_jax.train',
      f'--gin_search_paths={REPOSITORY}',
      '--gin_file=gin/models/tiny.gin',
      '--gin_file=gin/train.gin',
    ),
    "'gin/train.gin' is gin file number 2, expected it first",
  )
  refused(
    doors.call(
      'dsbs_jax.train',
      f'--gin_search_paths={REPOSITORY}',
      '--gin_file=gin/eval.gin',
    ),
    'binds TrainConfig, expected the engine file',
  )
  refused(doors.call('dsbs_jax.train'), '--gin_file=gin/train.gin')


def test_a_mesh_of_another_size_than_the_devices_is_refused(place):
  settings = {'DATA_DIR': f"'{place / 'data'}'", 'MESH': "'2x2'", **MODEL}
  done = subprocess.run(
    [
      sys.executable,
      *('-m', 'dsbs_jax.train', '--gin_file=gin/train.gin'),
      *(f'--gin_file=gin/{file}.gin' for file in FILES),
      f"--gin.MODEL_DIR='{place / 'mesh'}'",
      *(f'--gin.{k}={v}' for k, v in settings.items()),
    ],
    cwd=REPOSITORY,
    env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=3'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2, done.stderr
  assert 'mesh 2x2 needs 4 devices, but 3 are there' in done.stderr
  assert 'such as "3x1"' in done.stderr and 'Traceback' not in done.stderr
