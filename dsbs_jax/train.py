# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.train --gin_file=gin/train.gin --gin_file=... --gin.X=..."""

from absl import flags

from dsbs_jax.run import cluster, config, door, gin_flags, loop

DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'This is one process of several; see docs/training.md.'
)


def main() -> int:
  cluster.join(DISTRIBUTED.value)
  run = gin_flags.build(loop.Training)
  with cluster.together():
    return loop.train(run, config_text=config.operative_text())


if __name__ == '__main__':
  door.run(main)
