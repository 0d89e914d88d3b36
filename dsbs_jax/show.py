# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.show --task=cqa_gt_dsbs --data_dir=... --vocabulary=..."""

from absl import flags

from dsbs_jax.preparing import show
from dsbs_jax.runtime import command

S = flags.DEFINE_string
FLAGS = {
  'task': S('task', '', 'A task or mixture, such as cqa_gt_dsbs.'),
  'data_dir': S('data_dir', None, 'What prepare wrote to; DSBS_DATA_DIR.'),
  'vocabulary': S('vocabulary', None, 'A file or bytes; DSBS_VOCABULARY.'),
  'prefixes': S('prefixes', None, 'paper or code; DSBS_PREFIXES.'),
  'split': S('split', 'train', 'train, validation or test.'),
  'num': flags.DEFINE_integer('num', 3, 'Number of examples.'),
  'module': S('module', None, 'Your own module that registers the task.'),
}


def main() -> None:
  values = {name: flag.value for name, flag in FLAGS.items()}
  show.show(show.ShowConfig(**values))


if __name__ == '__main__':
  command.run(main)
