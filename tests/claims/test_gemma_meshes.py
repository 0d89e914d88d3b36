# SPDX-License-Identifier: Apache-2.0
"""gemma3_nano trains on eight devices as on one, however the mesh splits it.

Its single key-value head is fewer than the shards of a model axis. As in
test_meshes, this file is also the program that sees the simulated devices.
"""

import json

import numpy as np
import pytest

from tests.claims import test_meshes

# name -> mesh, rule table, optimizer, microbatches.
CASES = {
  'data': ('8x1', 'standard_rules', 'adamw_hf', 1),
  'fully sharded': ('8x1', 'fully_sharded_rules', 'adamw_hf', 1),
  'tensor-parallel': ('2x4', 'standard_rules', 'adamw_hf', 1),
}
ONE = ('1x1', 'standard_rules', 'adamw_hf', 1)

pytestmark = pytest.mark.long


@pytest.fixture(scope='module')
def losses():
  return test_meshes.run(script=__file__)


@pytest.mark.parametrize('case', CASES)
def test_a_mesh_has_the_losses_of_one_device(losses, case):
  expected, found = np.array(losses['one']), np.array(losses[case])
  assert found.shape == (test_meshes.STEPS,)
  assert found[-1] < 0.9 * found[0]  # it trains, so that 20 steps are a test
  worst = np.max(np.abs(found / expected - 1))
  print(f'{case}: {worst:.1e}')
  assert worst <= 1e-5


def main():
  """Trains on these meshes in turn and prints {case: losses} as JSON."""
  from dsbs_jax.core import network
  from dsbs_jax.training import start

  fields = start.named_network('gemma3_nano')
  config = network.GemmaConfig(**fields, vocab_size=64)
  cases = {'one': ONE} | CASES
  print(
    json.dumps(
      {name: test_meshes.train(config, *how)[0] for name, how in cases.items()}
    )
  )


if __name__ == '__main__':
  main()
