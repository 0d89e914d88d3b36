# SPDX-License-Identifier: Apache-2.0
"""dsbs sweep: many runs, over methods, models, shares of the data and seeds.

  dsbs sweep --benchmarks=cqa --models=gin/models/tiny.gin --seeds=0,1,2 \\
    --source=datasets.zip --vocabulary=spiece.model --runs_dir=runs/cqa
  dsbs sweep --flagfile=gin/sweeps/figure4.flags --source=datasets.zip \\
    --vocabulary=spiece.model --runs_dir=runs/fig4

A run that is finished is not run again. docs/experiments.md tells more.
"""

from absl import flags

from dsbs_jax.experiments import sweep, sweep_plan
from dsbs_jax.runs import run_names
from dsbs_jax.runtime import command

S, L, M = flags.DEFINE_string, flags.DEFINE_list, flags.DEFINE_multi_string
FLAGS = {
  'benchmarks': L('benchmarks', [], 'Names, such as cqa,svamp.'),
  'methods': L(
    'methods',
    ['gt_finetune', 'gt_dsbs'],
    f'Some of {", ".join(run_names.METHODS)}.',
  ),
  'models': L('models', ['gin/models/tiny.gin'], 'Gin files of models.'),
  'fractions': L('fractions', ['1'], 'Shares of the training data.'),
  'seeds': L('seeds', ['0'], 'Of subset, parameters and order.'),
  'vary': M('vary', [], 'NAME=VALUE,VALUE: a run per value.'),
  'runs_dir': S('runs_dir', '', 'Folder of the runs.'),
  'data_dir': S('data_dir', None, 'Default: data in runs_dir.'),
  'source': S('source', None, 'Of the data, as in prepare.'),
  'vocabulary': S('vocabulary', None, 'As in prepare and train.'),
  'prepare_flags': M('prepare', [], 'More flags of prepare: --keep=correct.'),
  'gin_files': M(
    'gin_file', ['gin/train.gin'], 'Engine, then what follows the model.'
  ),
  'gin_bindings': M('gin_bindings', [], 'NAME = VALUE for every run.'),
  'search_paths': L('gin_search_paths', ['.'], 'Of relative gin files.'),
}
PRINT = flags.DEFINE_bool('print', False, 'Print the commands, run nothing.')
STAGE = flags.DEFINE_enum('stage', 'all', sweep.STAGES, 'What to do.')
IN_PROCESS = flags.DEFINE_bool('in_process', False, 'No process per run.')


def main() -> int:
  values = {name: flag.value for name, flag in FLAGS.items()}
  return sweep.run(
    sweep_plan.Sweep(**values),
    stage=STAGE.value,
    print_only=PRINT.value,
    in_process=IN_PROCESS.value,
  )


if __name__ == '__main__':
  command.run(main)
