# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.eval --gin_file=gin/eval.gin --gin_file=... --gin.X=..."""

from dsbs_jax.run import door, gin_flags, scoring


def main() -> int:
  return scoring.score(gin_flags.build(scoring.Scoring))


if __name__ == '__main__':
  door.run(main)
