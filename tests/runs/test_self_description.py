# SPDX-License-Identifier: Apache-2.0
"""A folder says what its student is, or what is missing and how to say it."""

import dataclasses
import json
import shutil

import pytest

from dsbs_jax.interop import t5x_write_checkpoint
from dsbs_jax.interop.hf import hf_checkpoint
from dsbs_jax.runs import self_description
from tests import models
from tests.inference import small_student

CONFIG = """\
DATA_DIR = '{place}'
MAX_DECODE_LEN = 9
MIXTURE_OR_TASK_NAME = \\
    'svamp_gt_dsbs'
MODULE = 'mine'
PREFIXES = None
VOCABULARY = '{vocabulary}'
"""
NETWORK = {
  name: getattr(small_student.MODEL, name)
  for name in self_description.same_network.FIELDS
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run whose environment chose the prefixes."""
  folder = tmp_path_factory.mktemp('runs') / 'a'
  model = dataclasses.replace(small_student.MODEL, num_buckets=16)
  small_student.write(
    folder,
    run={
      'model': dataclasses.asdict(model),
      'task': 'svamp_gt_dsbs',
      'prefixes': 'code',
    },
  )
  text = CONFIG.format(place=folder, vocabulary='bytes')
  (folder / 'config.gin').write_text(text)
  return folder


@pytest.mark.parametrize('name', ['', 'checkpoint_7'])
def test_a_run_and_its_checkpoint_say_all(run, name):
  place = str(run / name)
  found = self_description.training(place)
  assert found.fields == {
    'mixture_or_task_name': 'svamp_gt_dsbs',
    'data_dir': str(run),
    'vocabulary': 'bytes',
    'prefixes': 'code',
    'module': 'mine',
    'max_decode_len': 9,
  }
  assert not found.missing
  # What no macro of a model file says is said, too.
  assert self_description.network(place) == (NETWORK | {'num_buckets': 16}, {})


def test_what_the_user_says_goes_before_the_folder(run):
  found = self_description.training(str(run))
  given = {'prefixes': 'paper', 'vocabulary': None}
  expected = {'prefixes': 'paper', 'vocabulary': 'bytes'}
  assert found.settle(given) == expected


def test_a_run_that_has_saved_nothing_yet_says_what_it_trains_on(run, tmp_path):
  shutil.copy(run / 'config.gin', tmp_path)
  found = self_description.training(str(tmp_path))
  assert found.fields['mixture_or_task_name'] == 'svamp_gt_dsbs'
  with pytest.raises(ValueError, match='is a run without a checkpoint'):
    self_description.network(str(tmp_path))


@pytest.mark.parametrize('vocabulary', ['/gone/x.model', 'gone/x.model:10'])
def test_what_has_moved_is_told_with_its_flag(run, tmp_path, vocabulary):
  shutil.copytree(run, tmp_path / 'b')
  text = CONFIG.format(place='/gone/data', vocabulary=vocabulary)
  (tmp_path / 'b' / 'config.gin').write_text(text)
  found = self_description.training(str(tmp_path / 'b'))
  with pytest.raises(ValueError, match="'/gone/data'.* Add --data_dir=FOLDER"):
    found.settle({'data_dir': None})
  with pytest.raises(ValueError, match='gone/x.model') as refused:
    found.settle({'vocabulary': None})
  is_relative = 'Run in the folder' in str(refused.value)
  assert is_relative == (not vocabulary.startswith('/'))
  given = {'data_dir': 'here', 'vocabulary': 'bytes'}
  assert found.settle(given) == given


@pytest.mark.parametrize('module', ['gone/mine.py', '/gone/mine.py'])
def test_a_module_that_is_elsewhere_is_told_with_its_flag(
  run, tmp_path, monkeypatch, module
):
  shutil.copytree(run, tmp_path / 'b')
  config = tmp_path / 'b' / 'config.gin'
  config.write_text(config.read_text().replace("'mine'", repr(module)))
  found = self_description.training(str(tmp_path / 'b'))
  with pytest.raises(
    ValueError, match=f"with the module '{module}'"
  ) as refused:
    found.settle({'module': None})
  assert 'Add --module=FILE' in str(refused.value)
  is_relative = 'Run in the folder' in str(refused.value)
  assert is_relative == (not module.startswith('/'))
  assert found.settle({'module': 'other.py'}) == {'module': 'other.py'}
  (tmp_path / 'gone').mkdir()
  (tmp_path / 'gone' / 'mine.py').touch()
  monkeypatch.chdir(tmp_path)
  found = self_description.training(str(tmp_path / 'b'))
  assert ('module' in found.missing) == module.startswith('/')


def _foreign(folder, kind):
  """A checkpoint of somebody else's, of the small student's network."""
  params, model = small_student.params(), small_student.MODEL
  if kind == 'hf':
    hf_checkpoint.save_hf(folder, params, model)
  else:
    t5x_write_checkpoint.save(
      str(folder), params, model, step=9, legacy=kind == 'legacy'
    )
    if (folder / 'checkpoint_9' / 'run').exists():
      shutil.rmtree(folder / 'checkpoint_9' / 'run')


@pytest.mark.parametrize('kind', ['hf', 'orbax', 'legacy'])
def test_folders_of_others_say_their_network_and_no_task(tmp_path, kind):
  place = tmp_path / 'theirs'
  _foreign(place, kind)
  found = self_description.training(str(place))
  with pytest.raises(ValueError, match='Add --benchmark=NAME .* --task='):
    found.settle({'mixture_or_task_name': None})
  network, missing = self_description.network(str(place))
  if kind == 'hf':
    assert (network, missing) == (NETWORK, {})
    with pytest.raises(ValueError, match='no tokenizer .*--vocabulary=FILE'):
      found.settle({'vocabulary': None})
    (place / 'spiece.model').write_bytes(b'')
    fields = self_description.training(str(place)).fields
    assert fields == {'vocabulary': str(place)}
    return
  # Shapes do not tell activations; nobody may guess them.
  assert network == {k: NETWORK[k] for k in NETWORK if k != 'mlp_activations'}
  assert 'shapes do not tell' in missing['mlp_activations']
  (place / 'config.gin').write_text(
    "network.T5Config.mlp_activations = ('silu', 'linear')\n"
    "MIXTURE_OR_TASK_NAME = 'cqa_gt_dsbs'\nVOCABULARY = %ELSEWHERE\n"
  )
  network, missing = self_description.network(str(place))
  assert network == NETWORK | {'mlp_activations': ('silu', 'linear')}
  assert not missing
  fields = self_description.training(str(place)).fields
  assert fields == {'mixture_or_task_name': 'cqa_gt_dsbs'}


@pytest.mark.parametrize(
  ('files', 'expected'),
  [
    ({}, 'holds nothing, expected a run'),
    ({'notes.txt': ''}, 'holds notes.txt, expected a run'),
    ({'model.stablehlo': '', 'run.py': ''}, 'is a program, .*run.py'),
    ({'model.bin': '', 'config.json': '{}'}, 'is a program, .*run.py'),
    ({'model.gguf': '', 'run.py': ''}, 'is a program, .*run.py'),
    ({'config.json': '{}', 'run.json': '['}, 'run.json cannot be read'),
  ],
)
def test_other_folders_are_refused(tmp_path, files, expected):
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=expected):
    self_description.training(str(tmp_path))


def test_no_folder_is_refused(tmp_path):
  with pytest.raises(ValueError, match='does not exist, expected a run'):
    self_description.training(str(tmp_path / 'nowhere'))
  (tmp_path / 'file').write_text(json.dumps({}))
  with pytest.raises(ValueError, match='is a file, expected a run'):
    self_description.training(str(tmp_path / 'file'))


def test_a_checkpoint_of_two_layouts_has_one_network(tmp_path):
  config = models.t5(mlp_activations=('relu',), logits_via_embedding=True)
  params = models.network.init(models.jax.random.key(0), config)
  hf_checkpoint.save_hf(tmp_path / 'hf', params, config)
  found, _ = self_description.network(str(tmp_path / 'hf'))
  assert models.t5(**found) == config
