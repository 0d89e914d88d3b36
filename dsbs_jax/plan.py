# SPDX-License-Identifier: Apache-2.0
"""dsbs plan: memory, time and price of a run, without its hardware.

  dsbs plan --gin_file=gin/models/xxl.gin --mesh=8x4 --device=v5e
  dsbs plan --student=flan-t5-base --device=h100

With the gin files and settings of a training command, it plans that command.
"""

from absl import flags

from dsbs_jax.hardware import planner
from dsbs_jax.runtime import command, device_specs
from dsbs_jax.runtime.configuration import gin_flags
from dsbs_jax.training import start, train_config

ENGINE = ('gin/train.gin', 'gin/plan.gin')
FLAGS = (
  flags.DEFINE_string('mesh', '', 'Data x model devices: 8x4.'),
  flags.DEFINE_enum(
    'device', None, sorted(device_specs.DEVICES), 'Kind of accelerator.'
  ),
  flags.DEFINE_multi_string(
    'batch', [], 'Shape of a view, label:32x128/16; default: of the data.'
  ),
  flags.DEFINE_float('price_per_device_hour', None, 'In any currency.'),
  flags.DEFINE_bool('remedies', True, 'Look for what fits if this does not.'),
)
UTILISATION = flags.DEFINE_list(
  'utilisation', None, 'Shares of the peak rate, low and high: 0.24,0.47.'
)
STUDENT = flags.DEFINE_string(
  'student', None, 'A folder, or the name of a size, in place of a model file.'
)
JSON = flags.DEFINE_bool('json', False, 'Print JSON.')


def main() -> int:
  values = command.values(FLAGS)
  if UTILISATION.value:
    values['utilisation'] = UTILISATION.value
  request = planner.PlanRequest(**values)
  planner.simulate(request)
  defaults = None
  if STUDENT.value:
    macros = gin_flags.macros()
    defaults = start.network_defaults(
      start.Request(task='-', student=STUDENT.value, macros=macros)
    )
  run = gin_flags.build(
    train_config.TrainConfig, engine=ENGINE, defaults=defaults
  )
  return planner.show(planner.make(run, request), as_json=JSON.value)


if __name__ == '__main__':
  command.run(
    main,
    more_help=lambda: gin_flags.help_text(
      train_config.TrainConfig, 'train.gin'
    ),
  )
