# SPDX-License-Identifier: Apache-2.0
"""Exports keep every parameter, and say what they cannot do."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util

from dsbs_jax.core import network, optimizer
from dsbs_jax.exporting import export as export_lib
from dsbs_jax.exporting import hf_folder, stablehlo
from dsbs_jax.interop import (
  read_checkpoint,
  t5x_read_checkpoint,
  t5x_storage,
  t5x_write_checkpoint,
)
from dsbs_jax.interop.hf import hf_checkpoint
from tests import models
from tests.recordings import hf_folders

pytest.importorskip('safetensors', reason='comes with the extra hf')

CONFIG = models.t5(emb_dim=128, head_dim=16, mlp_dim=160, num_encoder_layers=2)


@pytest.fixture(scope='module')
def params():
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: random.standard_normal(leaf.shape, np.float32),
    network.param_shapes(CONFIG),
  )


def write_run(folder, params, *, rate=None):
  """A checkpoint as the built-in engine writes it, at step 30."""
  state = {'step': np.int32(30)}
  if rate is not None:
    state['param_states'] = jax.jit(optimizer.adafactor(rate).init)(params)
  place = folder / 'checkpoint_30'
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(place / 'state', {'target': params, 'state': state})
  (place / 'run').mkdir()
  facts = {'model': dataclasses.asdict(CONFIG), 'vocabulary': 'none'}
  (place / 'run' / 'metadata').write_text(json.dumps(facts))
  return place


def assert_equal(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


def read_states(folder):
  return t5x_storage.read_leaves(folder, 'state/param_states')


@pytest.mark.parametrize('legacy', [False, True])
def test_to_t5x_with_a_fresh_optimizer(tmp_path, params, legacy):
  run = write_run(tmp_path / 'run', params)
  export = export_lib.ExportConfig(
    model_dir=str(run), out=str(tmp_path / 'out')
  )
  assert 'fresh' in export_lib.to_t5x(export, legacy=legacy)
  written = tmp_path / 'out' / 'checkpoint_0'
  assert (written / 'checkpoint').is_file() == legacy
  assert_equal(t5x_read_checkpoint.load_params(str(written), CONFIG), params)
  states = read_states(written)
  names = traverse_util.flatten_dict(params, sep='/')
  assert len(states) == 4 * len(names)
  assert states['token_embedder/embedding/v_row'].shape == (128,)


def test_to_t5x_keeps_adafactor(tmp_path, params):
  run = write_run(tmp_path / 'run', params, rate=1e-3)
  export = export_lib.ExportConfig(
    model_dir=str(run), out=str(tmp_path / 'out')
  )
  assert 'its Adafactor state' in export_lib.to_t5x(export)
  assert models.t5x_step(str(tmp_path / 'out')) == 30


def test_hugging_face_and_back(tmp_path, params):
  t5x_write_checkpoint.save(
    str(tmp_path / 't5x'), params, CONFIG, step=9, legacy=True
  )
  export = export_lib.ExportConfig(
    model_dir=str(tmp_path / 't5x' / 'checkpoint_9'), out=str(tmp_path / 'hf')
  )
  assert 'without a tokenizer' in hf_folder.to_hugging_face(export)
  assert 'AutoTokenizer' not in (tmp_path / 'hf' / 'README.md').read_text()
  assert_equal(
    read_checkpoint.load_params(str(tmp_path / 'hf'), CONFIG), params
  )
  export = export_lib.ExportConfig(
    model_dir=str(tmp_path / 'hf'), out=str(tmp_path / 'again')
  )
  export_lib.to_t5x(export)
  assert_equal(
    t5x_read_checkpoint.load_params(str(tmp_path / 'again'), CONFIG), params
  )


@pytest.mark.parametrize('legacy', [False, True])
def test_the_network_travels_through_t5x(tmp_path, params, legacy):
  """Shapes do not tell silu from gelu; checkpoints of others ask for it."""
  silu = dataclasses.replace(CONFIG, mlp_activations=('silu', 'linear'))
  hf_checkpoint.save_hf(tmp_path / 'hf', params, silu)

  def to_hugging_face(**options):
    out = tmp_path / f'again{len(list(tmp_path.iterdir()))}'
    hf_folder.to_hugging_face(
      export_lib.ExportConfig(
        model_dir=str(tmp_path / 't5x'), out=str(out), **options
      )
    )
    return hf_checkpoint.config_from_hf(out)

  export = export_lib.ExportConfig(
    model_dir=str(tmp_path / 'hf'), out=str(tmp_path / 't5x')
  )
  export_lib.to_t5x(export, legacy=legacy)
  assert to_hugging_face() == silu
  with pytest.raises(ValueError, match='MLP_ACTIVATIONS'):
    read_checkpoint.load_params(str(tmp_path / 't5x'), CONFIG)
  shutil.rmtree(tmp_path / 't5x' / 'checkpoint_0' / 'run')
  with pytest.raises(ValueError, match='Give --activations=gelu,linear'):
    to_hugging_face()
  assert to_hugging_face(activations='silu,linear') == silu
  (tmp_path / 't5x' / 'config.gin').write_text(
    "MLP_ACTIVATIONS = \\\n  ('silu', 'linear')\n"
    'network.T5Config.mlp_activations = %MLP_ACTIVATIONS\n'
    'network.T5Config.emb_dim = 128\nnetwork.T5Config.dtype = %DTYPE\n'
  )
  assert to_hugging_face() == silu
  with pytest.raises(ValueError, match='MLP_ACTIVATIONS'):
    read_checkpoint.load_params(str(tmp_path / 't5x'), CONFIG)


def test_settings_of_generation_are_kept(tmp_path, params):
  hf_checkpoint.save_hf(
    tmp_path / 'hf', params, CONFIG, generation={'max_length': 77}
  )
  hf_folder.to_hugging_face(
    export_lib.ExportConfig(
      model_dir=str(tmp_path / 'hf'), out=str(tmp_path / 'again')
    )
  )
  text = (tmp_path / 'again' / 'generation_config.json').read_text()
  assert json.loads(text)['max_length'] == 77


def test_another_vocabulary_is_refused(tmp_path, params):
  run = write_run(tmp_path / 'run', params)
  model = hf_folders.BUNDLED / 'spiece.model'
  export = export_lib.ExportConfig(
    model_dir=str(run), out=str(tmp_path / 'hf'), vocabulary=str(model)
  )
  with pytest.raises(ValueError, match='trained with vocabulary none'):
    hf_folder.to_hugging_face(export)


def test_a_pickle_is_read_by_no_format_without_the_flag(tmp_path, params):
  folder = tmp_path / 'pickled'
  hf_checkpoint.save_hf(folder, params, CONFIG)
  (folder / 'model.safetensors').unlink()
  (folder / 'pytorch_model.bin').write_bytes(b'no pickle either')
  for export in (
    hf_folder.to_hugging_face,
    export_lib.to_t5x,
    stablehlo.to_stablehlo,
  ):
    for allowed in (False, True):
      config = export_lib.ExportConfig(
        model_dir=str(folder),
        out=str(tmp_path / 'out'),
        vocabulary='bytes',
        allow_pickle=allowed,
      )
      with pytest.raises(ValueError, match='pytorch_model.bin') as refused:
        export(config)
      # With it, torch is asked, which may not be here.
      assert ('export --allow_pickle' in str(refused.value)) == (not allowed)


def test_folders_must_be_given():
  with pytest.raises(ValueError, match='--out is not given'):
    export_lib.ExportConfig(model_dir='x', out='')
