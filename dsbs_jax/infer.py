# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.infer --gin_file=gin/infer.gin --gin_file=... --gin.X=..."""

from dsbs_jax.inference import infer_file
from dsbs_jax.runtime import command, gin_flags


def main() -> int:
  return infer_file.infer(gin_flags.build(infer_file.InferConfig))


if __name__ == '__main__':
  command.run(main)
