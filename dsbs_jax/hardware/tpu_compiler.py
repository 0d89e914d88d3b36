# SPDX-License-Identifier: Apache-2.0
"""The TPU compiler, which needs no TPU.

`libtpu` (the extra `tpu`) holds the compiler. Its devices can be compiled for
but not run on.
"""

import importlib.util
import os

import jax
from jax.experimental import topologies

from dsbs_jax import contract
from dsbs_jax.runtime import device_specs

# Without these the library looks for the metadata server of a TPU machine.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  # Several processes may compile at once: none of them opens a chip.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_WORKER_HOSTNAMES': 'localhost',
}


def is_installed() -> bool:
  """Whether libtpu is there."""
  return importlib.util.find_spec('libtpu') is not None


def devices(kind: device_specs.Device, num_chips: int) -> list[jax.Device]:
  """The devices of a whole TPU slice of so many chips, to compile for.

  Raises:
    UserError: libtpu is not installed, or no slice has this size.
  """
  if not is_installed():
    raise contract.UserError(
      f'compiling for {kind.name} needs the TPU compiler, which runs without'
      ' a TPU, but libtpu is not installed. Install it: pip install -c'
      " constraints.txt -e '.[tpu]'."
    )
  layout = device_specs.layout(kind, num_chips)
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  options = {'chip_config_name': 'megacore'} if kind.megacore else {}
  if num_chips == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  topology = topologies.get_topology_desc(
    f'{kind.name}:{layout}', platform='tpu', **options
  )
  return list(topology.devices)
