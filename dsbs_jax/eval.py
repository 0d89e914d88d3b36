# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.eval --gin_file=gin/eval.gin --gin_file=... --gin.X=..."""

from dsbs_jax.inference import evaluate_checkpoint
from dsbs_jax.runtime import command, gin_flags


def main() -> None:
  evaluate_checkpoint.evaluate(gin_flags.build(evaluate_checkpoint.EvalConfig))


if __name__ == '__main__':
  command.run(main)
