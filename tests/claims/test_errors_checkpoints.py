# SPDX-License-Identifier: Apache-2.0
"""Wrong checkpoints, prepared data and runs: one clear error, status 2."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from dsbs_jax.core import network
from dsbs_jax.interop.hf import hf_checkpoint
from tests import models
from tests.claims import doors
from tests.claims.errors import REPOSITORY, gin, refused, write

CHECKPOINTS = {
  'nowhere': ("CHECKPOINT_PATH='/nowhere'", ("'/nowhere'", 'CHECKPOINT_PATH')),
  'no_text': ('CHECKPOINT_PATH=3', ('checkpoint_path is 3', 'text')),
  'step': ("STEP='last'", ("step is 'last'", 'latest, best', 'checkpoint_7')),
  'another_width': (
    'EMB_DIM=32',
    ('another size', 'is (16,), expected (32,)', '27 of 29', 'model file'),
  ),
  'more_layers': (
    'NUM_ENCODER_LAYERS=2',
    ('it lacks encoder/layers_1', 'layers'),
  ),
  'another_vocabulary': (
    "VOCABULARY='bytes:10'",
    ('was trained with vocabulary', 'Set VOCABULARY'),
  ),
  'larger_vocabulary': (
    "VOCABULARY='bytes:300'",
    ('the vocabulary has 559 ids', 'only 384 rows', 'its own VOCABULARY'),
  ),
  'half_precision': (
    "ACTIVATION_DTYPE='float16'",
    ("'float16'", 'use bfloat16'),
  ),
  'no_beam': ('NUM_BEAMS=0', ('num_beams is 0', '>= 1')),
  'no_rows': ("EVAL_BATCH_SIZE='a'", ("eval_batch_size is 'a'", '>= 1')),
  'no_length': ('MAX_DECODE_LEN=0', ('max_decode_len is 0', '>= 1')),
}
EVAL = {
  'no_label': (
    "MIXTURE_OR_TASK_NAME='svamp_rationale'",
    ('svamp_rationale has no label', 'such as cqa_gt_dsbs'),
  ),
  'output': ("EVAL_OUTPUT_DIR='{place}/q.txt'", ('q.txt', 'Give another')),
  'folder': ("CHECKPOINT_PATH='{place}/bare'", ('config.json cannot be read',)),
  'bin': (
    "CHECKPOINT_PATH='{place}/bin'",
    ('no model.safetensors', 'ALLOW_PICKLE'),
  ),
  'eos': ("CHECKPOINT_PATH='{place}/eos'", ('eos_token_id is 2', 'expected 1')),
  'adapter': ("CHECKPOINT_PATH='{place}/adapter'", ('adapter', 'merge it')),
  'gate': (
    "CHECKPOINT_PATH='{place}/gate'",
    ("('silu', 'linear') there", '--gin.MLP_ACTIVATIONS='),
  ),
  'torn': ("CHECKPOINT_PATH='{place}/torn'", ('complete safetensors', 'again')),
}
INFER = {
  'no_input': ("INPUT='/nowhere'", ("'/nowhere'", 'exists')),
  'folder_for_input': (
    "INPUT='{place}'",
    ('Is a directory', 'Expected a file'),
  ),
  'folder_for_output': ("OUTPUT='{place}'", ('Is a directory', 'Expected a')),
  'same_file': ("OUTPUT='{place}/q.txt'", ('INPUT and OUTPUT are both',)),
  'benchmark': ("BENCHMARK='cqq'", ("named 'cqq'", 'Did you mean cqa?')),
  'task': (
    "MIXTURE_OR_TASK_NAME='svamp_gt_dsb'",
    ("'svamp_gt_dsb' is not a task name", "'cqa_gt_dsbs'"),
  ),
  'fields': ("ID_FIELDS='id'", ("id_fields is 'id'", "('id',)")),
  'chunk_size': ("CHUNK_SIZE='a'", ("chunk_size is 'a'", '>= 1')),
}
_SILU = models.t5(
  vocab_size=384,
  num_heads=4,
  head_dim=4,
  mlp_activations=('silu', 'linear'),
)
_T5 = {
  'model_type': 't5',
  'vocab_size': 384,
  'd_model': 16,
  'num_heads': 4,
  'd_kv': 4,
  'd_ff': 32,
  'num_layers': 1,
}


@pytest.mark.parametrize('name', CHECKPOINTS | EVAL)
def test_eval_says_what_is_wrong(place, name):
  t5 = json.dumps(_T5)
  write(place / 'bare', {'config.json': '[3]', 'model.safetensors': 'x'})
  write(place / 'bin', {'config.json': t5, 'pytorch_model.bin': 'x'})
  write(place / 'torn', {'config.json': t5, 'model.safetensors': b'\xff' * 30})
  write(place / 'adapter', {'adapter_config.json': '{}'})
  eos = json.dumps(_T5 | {'eos_token_id': 2})
  write(place / 'eos', {'config.json': eos})
  _write_gate(place)
  flag, parts = (CHECKPOINTS | EVAL)[name]
  refused(gin('eval', place, flag.replace('{place}', str(place))), *parts)


def _write_gate(place, name='gate', *, value=0.0, config=_SILU):
  """A Hugging Face folder of the size of the settings, but gated by silu."""
  if not (place / name).exists():
    params = jax.tree.map(
      lambda leaf: np.full(leaf.shape, value, np.float32),
      network.param_shapes(config),
    )
    hf_checkpoint.save_hf(place / name, params, config)


@pytest.mark.parametrize('verb', ['eval', 'infer', 'serve'])
def test_no_command_answers_without_finite_logits(place, verb):
  gelu = dataclasses.replace(_SILU, mlp_activations=('gelu', 'linear'))
  _write_gate(place, 'nan', value=np.nan, config=gelu)
  ended = gin(verb, place, f"CHECKPOINT_PATH='{place / 'nan'}'")
  refused(ended, 'the logits of a batch are not finite', 'ACTIVATION_DTYPE')


@pytest.mark.parametrize('verb', ['train', 'infer', 'serve'])
def test_every_command_refuses_another_network(place, verb):
  _write_gate(place)
  name = 'INITIAL_CHECKPOINT_PATH' if verb == 'train' else 'CHECKPOINT_PATH'
  refused(gin(verb, place, f"{name}='{place / 'gate'}'"), *EVAL['gate'][1])


@pytest.mark.parametrize('verb', ['serve', 'export'])
def test_every_command_refuses_what_the_table_has_no_rows_for(place, verb):
  parts = ('the vocabulary has 559 ids', 'only 384 rows')
  if verb == 'export':
    _write_gate(place)
    flags = (f'--model_dir={place / "gate"}', f'--out={place / "no"}')
    ended = doors.call('dsbs_jax.export', *flags, '--vocabulary=bytes:300')
  else:
    ended = gin(verb, place, "VOCABULARY='bytes:300'")
  refused(ended, *parts)


@pytest.mark.parametrize('name', CHECKPOINTS | INFER)
def test_infer_says_what_is_wrong(place, name):
  flag, parts = (CHECKPOINTS | INFER)[name]
  refused(gin('infer', place, flag.replace('{place}', str(place))), *parts)


OTHERS = {
  'show_task': ('show', ('--task=svmp_gt_dsbs',), ("'svmp'", 'there: svamp')),
  'show_split': (
    'show',
    ('--task=svamp_gt_dsbs', '--split=trian'),
    ("no split 'trian'", 'train, validation, test'),
  ),
  'show_number': ('show', ('--task=a', '--num=0'), ('--num is 0', '1 or more')),
  'export_step': (
    'export',
    ('--model_dir={place}/run', '--out={place}/x', '--step=latst'),
    ("step is 'latst'", 'checkpoint_7'),
  ),
  'export_format': ('export', ('--format=onnx',), ('--format=onnx', 'hf|t5x')),
  'export_config': (
    'export',
    ('--model_dir={place}/bare', '--out={place}/x'),
    ('config.json cannot be read', 'Fetch it again'),
  ),
  'sweep_benchmark': (
    'sweep',
    ('--benchmarks=svmp', '--runs_dir={place}/runs', '--vocabulary=bytes'),
    ("named 'svmp'", 'Did you mean svamp'),
  ),
  'sweep_method': (
    'sweep',
    ('--benchmarks=svamp', '--methods=gt_dsb', '--runs_dir={place}/runs'),
    ("'gt_dsb'", 'gt_dsbs', '--methods'),
  ),
  'sweep_seed': (
    'sweep',
    ('--benchmarks=svamp', '--seeds=a', '--runs_dir={place}/runs'),
    ("--seeds has 'a'", 'numbers'),
  ),
  'report_nothing': ('report', (), ('no folder is given', 'RUNS_DIR')),
  'report_nowhere': ('report', ('/nowhere',), ("no run in '/nowhere'", 'Give')),
  'report_metrics': (
    'report',
    ('{place}/odd',),
    ('odd/metrics.jsonl has the byte 0xff', 'UTF-8'),
  ),
}


@pytest.mark.parametrize('name', OTHERS)
def test_other_commands_say_what_is_wrong(place, name):
  verb, flags, parts = OTHERS[name]
  write(place / 'bare', {'config.json': '[3]', 'model.safetensors': 'x'})
  write(place / 'odd', {'config.gin': 'A = 1\n', 'metrics.jsonl': b'\xff\n'})
  flags = [flag.replace('{place}', str(place)) for flag in flags]
  if verb == 'show':
    flags += [f'--data_dir={place / "data"}', '--vocabulary=bytes']
  if verb == 'sweep':
    files = ('gin/train.gin', f'--gin_search_paths={REPOSITORY}')
    flags += [f'--gin_file={files[0]}', files[1]]
  refused(doors.call(f'dsbs_jax.{verb}', *flags), *parts)


def _break(folder, pattern, content):
  for path in folder.glob(pattern):
    path.write_bytes(content)


@pytest.mark.parametrize(
  'pattern, content, parts',
  [
    ('dsbs_svamp/1.0.0/metadata.json', b'{', ('metadata.json is damaged',)),
    ('dsbs_svamp/1.0.0/metadata.json', b'[]', ('damaged', '--overwrite')),
    ('dsbs_svamp/1.0.0/*train*record*', b'x' * 99, ('train in', 'damaged')),
    ('tokens/*/inputs.npy', b'x' * 200, ('token cache', 'Delete that folder')),
    ('tokens/*/index.npy', b'', ('token cache', 'damaged')),
  ],
)
def test_damaged_prepared_data_is_named(
  place, tmp_path, pattern, content, parts
):
  show = ('--task=svamp_gt_label', '--vocabulary=bytes', '--num=1')
  folder = tmp_path / 'data'
  shutil.copytree(place / 'data', folder, ignore=lambda *_: ['tokens'])
  if pattern.startswith('tokens'):
    assert (
      doors.call('dsbs_jax.show', f'--data_dir={folder}', *show).status == 0
    )
  _break(folder, pattern, content)
  refused(doors.call('dsbs_jax.show', f'--data_dir={folder}', *show), *parts)
