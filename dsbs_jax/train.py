# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.train --gin_file=gin/train.gin --gin_file=... --gin.X=..."""

from absl import flags

from dsbs_jax.runtime import command, distributed, gin_config, gin_flags
from dsbs_jax.training import loop, train_config

DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'This is one process of several; see docs/training.md.'
)


def main() -> int:
  distributed.join(DISTRIBUTED.value)
  run = gin_flags.build(train_config.TrainConfig)
  with distributed.together():
    return loop.train(run, config_text=gin_config.operative_text())


if __name__ == '__main__':
  command.run(main)
