# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.train --gin_file=gin/train.gin --gin_file=... --gin.X=..."""

from absl import flags

from dsbs_jax.run import cluster, config, door, loop

GIN_FILES = flags.DEFINE_multi_string(
  'gin_file', [], 'Engine, then model, then benchmark.'
)
GIN_BINDINGS = flags.DEFINE_multi_string('gin_bindings', [], 'NAME = VALUE.')
GIN_PATHS = flags.DEFINE_list(
  'gin_search_paths', ['.'], 'Folders of relative gin files.'
)

DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'This is one process of several; see docs/training.md.'
)


def main() -> int:
  cluster.join(DISTRIBUTED.value)
  run = config.build(
    loop.Training,
    gin_files=GIN_FILES.value,
    gin_bindings=GIN_BINDINGS.value,
    search_paths=GIN_PATHS.value,
  )
  return loop.train(run, config_text=config.operative_text())


if __name__ == '__main__':
  door.run(main)
