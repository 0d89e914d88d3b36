# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.infer --gin_file=gin/infer.gin --gin_file=... --gin.X=..."""

from dsbs_jax.run import door, gin_flags, inference


def main() -> int:
  return inference.infer(gin_flags.build(inference.Inference))


if __name__ == '__main__':
  door.run(main)
