# SPDX-License-Identifier: Apache-2.0
"""dsbs show [FOLDER]: examples as training sees them, token by token.

  dsbs show runs/cqa
  dsbs show runs/cqa --split=test --num=5
  dsbs show --task=cqa_gt_dsbs --data_dir=data --vocabulary=spiece.model

FOLDER is a run or an exported folder, which says task, data, vocabulary,
prefixes, module and the rule for rationales; flags override it.
"""

from absl import flags

from dsbs_jax.preparing import show
from dsbs_jax.runs import self_description
from dsbs_jax.runtime import command

S = flags.DEFINE_string
# What a folder says of itself, by the name that it has there.
FLAGS = {
  'mixture_or_task_name': S('task', None, 'Such as cqa_gt_dsbs.'),
  'data_dir': S('data_dir', None, 'What prepare wrote to; DSBS_DATA_DIR.'),
  'vocabulary': S('vocabulary', None, 'A file or bytes; DSBS_VOCABULARY.'),
  'prefixes': S('prefixes', None, 'paper or code; DSBS_PREFIXES.'),
  'module': S('module', None, 'Your own module that registers the task.'),
  'rationale_choice': S(
    'rationale_choice', None, 'Rule by which rows with several choose.'
  ),
}
SPLIT = S('split', 'train', 'train, validation or test.')
NUM = flags.DEFINE_integer('num', 3, 'Number of examples.')


def main(folder: str | None = None) -> None:
  values = {name: flag.value for name, flag in FLAGS.items()}
  if folder is not None:
    values = self_description.training(folder).settle(values)
  task = values.pop('mixture_or_task_name') or ''
  show.show(
    show.ShowConfig(task=task, split=SPLIT.value, num=NUM.value, **values)
  )


if __name__ == '__main__':
  command.run(main, most_arguments=1)
