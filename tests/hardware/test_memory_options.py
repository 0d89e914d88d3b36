# SPDX-License-Identifier: Apache-2.0
"""What the planner advises where a step does not fit."""

import dataclasses

import jax

from dsbs_jax.core import partitioning
from dsbs_jax.data.batching import row_shapes
from dsbs_jax.hardware import memory, memory_options
from dsbs_jax.runtime import device_specs
from tests.hardware import small_run

ONE_VIEW = {'label': row_shapes.Shape(32, 64, 32)}


def test_advice_is_the_first_change_that_fits(run, monkeypatch):
  """A device that is a little too small for the step as it is asked for."""
  mesh = partitioning.make_mesh('1x1', devices=jax.devices()[:1])
  monkeypatch.setattr(memory, 'mesh_of', lambda device, shape: mesh)
  asked = memory_options.Option(run, '1x1')
  shapes = lambda run, mesh: ONE_VIEW  # noqa: E731
  roomy = device_specs.Device('roomy', 10.0, 1.0)
  plain = memory_options.compile_option(asked, roomy, shapes=shapes)
  assert plain.fits(roomy)
  tight = device_specs.Device(
    'tight', (plain.compiled.peak - 1) / device_specs.GIB, 1.0
  )
  assert not plain.fits(tight)
  options = list(memory_options.options(asked, tight))
  assert options[0].changes == ('--gin.REMAT="\'full\'"',)
  assert options[0].run.model.remat == 'full'
  result = memory_options.compile_option(options[0], tight, shapes=shapes)
  assert result.compiled.peak < plain.compiled.peak and result.fits(tight)
  # Shapes alone rule it out: nothing is compiled.
  hopeless = device_specs.Device('hopeless', 1e-4, 1.0)
  assert (
    memory_options.compile_option(asked, hopeless, shapes=shapes).compiled
    is None
  )


def test_the_ladder_never_repeats_what_is_asked(run):
  tuned = small_run.build(
    bindings=(
      *small_run.SMALL,
      "REMAT = 'full'",
      'SHARDING_RULES = @partitioning.fully_sharded_rules',
      'MICROBATCHES = 4',
      'OPTIMIZER = @optimizer.adafactor',
    )
  )
  device = device_specs.device('v5e')
  changes = [
    option.changes
    for option in memory_options.options(
      memory_options.Option(tuned, '4x2'), device
    )
  ]
  assert changes == [
    ('--gin.MICROBATCHES=8',),
    ('--gin.MICROBATCHES=8', '--gin.MESH="\'8x2\'"'),
    ('--gin.MICROBATCHES=8', '--gin.MESH="\'16x2\'"'),
  ]


def test_microbatches_need_rows_that_divide(run):
  option = memory_options.Option(
    dataclasses.replace(run, microbatches=3), '1x1'
  )
  device = device_specs.Device('any', 10.0, 1.0)
  assert (
    memory_options.compile_option(
      option, device, shapes=lambda run, mesh: small_run.VIEWS
    )
    is None
  )
