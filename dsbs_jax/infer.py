# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.infer --gin_file=gin/infer.gin --gin_file=... --gin.X=..."""

from absl import flags

from dsbs_jax.run import config, door, inference

GIN_FILES = flags.DEFINE_multi_string(
  'gin_file', [], 'Engine, then model, then benchmark.'
)
GIN_BINDINGS = flags.DEFINE_multi_string('gin_bindings', [], 'NAME = VALUE.')
GIN_PATHS = flags.DEFINE_list(
  'gin_search_paths', ['.'], 'Folders of relative gin files.'
)


def main() -> int:
  run = config.build(
    inference.Inference,
    gin_files=GIN_FILES.value,
    gin_bindings=GIN_BINDINGS.value,
    search_paths=GIN_PATHS.value,
  )
  return inference.infer(run)


if __name__ == '__main__':
  door.run(main)
