# SPDX-License-Identifier: Apache-2.0
"""Moments of our Adafactor go to T5X; other optimizers have none to give."""

import dataclasses

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dsbs_jax.core import network, optimizer
from dsbs_jax.interop import t5x_write_checkpoint
from tests import models
from tests.interop import hf_models

CONFIG = models.t5(
  emb_dim=128, mlp_dim=160, num_encoder_layers=3, num_decoder_layers=2
)


@pytest.mark.parametrize('scanned', [False, True])
def test_moments_of_a_run_in_t5xs_layout(tmp_path, scanned):
  """Real moments after a real update, unrolled, against a hand count."""
  config = dataclasses.replace(CONFIG, scan_layers=scanned)
  transformation = optimizer.adafactor(1e-3)

  params = hf_models.params(config)
  gradients = jax.tree.map(lambda x: 0.1 * x + 0.01, params)

  @jax.jit
  def one_step(params):
    opt_state = transformation.init(params)
    return transformation.update(gradients, opt_state, params)[1]

  opt_state = one_step(params)
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(
      tmp_path / 'checkpoint_1' / 'state',
      {
        'target': params,
        'state': {'step': 1, 'param_states': opt_state},
      },
    )
  moments = t5x_write_checkpoint.read_moments(
    str(tmp_path / 'checkpoint_1'), config
  )
  plain = dataclasses.replace(config, scan_layers=False)
  shapes = network.param_shapes(plain)
  fresh = t5x_write_checkpoint.fresh_moments(shapes)
  assert {name: leaf.shape for name, leaf in models.flat(moments).items()} == {
    name: leaf.shape for name, leaf in models.flat(fresh).items()
  }
  # Step 0 keeps nothing: row moments are the means of the squared gradients.
  if scanned:
    gradients = network.unstack_layers(gradients, config)
  squared = {name: np.square(g) for name, g in models.flat(gradients).items()}
  wo = 'encoder/layers_1/mlp/wo/kernel'  # [160, 128]: the second axis is rows
  np.testing.assert_allclose(
    models.flat(moments)[f'{wo}/v_row'], squared[wo].mean(0), rtol=1e-5
  )
  np.testing.assert_allclose(
    models.flat(moments)[f'{wo}/v_col'], squared[wo].mean(1), rtol=1e-5
  )
  norm = 'decoder/layers_0/pre_mlp_layer_norm/scale'
  np.testing.assert_allclose(
    models.flat(moments)[f'{norm}/v'], squared[norm], rtol=1e-5
  )


def test_other_optimizers_have_no_moments(tmp_path):
  params = hf_models.params(CONFIG)
  opt_state = optimizer.adamw_hf(1e-3).init(params)
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(
      tmp_path / 'checkpoint_1' / 'state',
      {'target': params, 'state': {'param_states': opt_state}},
    )
  folder = str(tmp_path / 'checkpoint_1')
  assert t5x_write_checkpoint.read_moments(folder, CONFIG) is None
