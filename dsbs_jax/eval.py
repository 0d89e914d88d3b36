# SPDX-License-Identifier: Apache-2.0
"""dsbs eval FOLDER: scores a student on the prepared splits.

  dsbs eval runs/cqa
  dsbs eval runs/cqa --step=best --splits=test
  dsbs eval runs/cqa/checkpoint_500 --data_dir=data
  dsbs eval flan-t5-base --benchmark=cqa --data_dir=data

FOLDER is a run, one of its checkpoints, an exported folder, or a T5 of Hugging
Face or T5X. Scores and predictions go to its folder, or to --out. Without
FOLDER, gin files say it: python -m dsbs_jax.eval --gin_file=gin/eval.gin ...
"""

from absl import flags

from dsbs_jax.inference import evaluate_checkpoint, student_flags
from dsbs_jax.runtime import command

DOOR = student_flags.define(
  'eval',
  {
    'EVAL_SPLITS': flags.DEFINE_list('splits', None, 'Such as test.'),
    'EVAL_OUTPUT_DIR': flags.DEFINE_string('out', None, 'Folder to write.'),
  },
  reads_data=True,
)
CONFIG = evaluate_checkpoint.EvalConfig


def main(folder: str | None = None) -> None:
  evaluate_checkpoint.evaluate(DOOR.build(CONFIG, folder))


if __name__ == '__main__':
  command.run(main, most_arguments=1, more_help=lambda: DOOR.help_text(CONFIG))
