# SPDX-License-Identifier: Apache-2.0
"""dsbs train: trains a student on labels and rationales.

  dsbs train --benchmark=cqa --student=flan-t5-base --data_dir=data \\
    --out=runs/cqa
  dsbs train --benchmark=mine --module=mine.py --student=small --data_dir=data \\
    --out=runs/mine --steps=2000 --lr=1e-3
  dsbs train --gin_file=gin/train.gin --gin_file=gin/models/base.gin \\
    --gin_file=gin/benchmarks/cqa.gin --gin.MODEL_DIR=runs/cqa

The same command goes on with a run that was stopped. Files of --gin_file and
settings of --gin.NAME can stand beside the flags; the latter override them.
"""

from absl import flags

from dsbs_jax import contract
from dsbs_jax.data import task_modules
from dsbs_jax.data.remote import object_store
from dsbs_jax.data.vocabulary import vocabulary_files
from dsbs_jax.runtime import command, distributed, progress
from dsbs_jax.runtime.configuration import gin_config, gin_flags
from dsbs_jax.training import loop, start, train_config

S, N = flags.DEFINE_string, flags.DEFINE_integer
BENCHMARK = S('benchmark', None, 'Its name; its task is NAME_gt_dsbs.')
LABELS_OF = flags.DEFINE_enum(
  'labels_of', 'gt', ['gt', 'llm'], 'Whose labels: human ones, or the LLM.'
)
STUDENT = S(
  'student',
  None,
  'Folder of a Hugging Face or T5X T5, or for random parameters the name of a'
  f' size, such as small; {start.SCRATCH_MODEL} by default.',
)
# Macro -> the flag that is its short name.
FLAGS = {
  'MODEL_DIR': S('out', None, 'Folder of the run.'),
  'MIXTURE_OR_TASK_NAME': S('task', None, 'In place of --benchmark.'),
  'DATA_DIR': S('data_dir', None, 'What prepare wrote to; DSBS_DATA_DIR.'),
  'VOCABULARY': S(
    'vocabulary',
    None,
    "SentencePiece file or bytes; by default the student's, else the one that"
    ' prepare trained.',
  ),
  'MODULE': S('module', None, 'Your own module: its path or name.'),
  'TRAIN_STEPS': N('steps', None, 'Of the whole run.'),
  'LEARNING_RATE': flags.DEFINE_float('lr', None, 'Peak learning rate.'),
  'BATCH_SIZE': N('batch', None, 'Pairs per step, over all devices.'),
  'ALPHA': flags.DEFINE_float('alpha', None, 'Weight of the label task.'),
  'SEED': N('seed', None, 'Of parameters, dropout and data order.'),
  'ALLOW_PICKLE': flags.DEFINE_bool(
    'allow_pickle', None, 'Read pytorch_model.bin.'
  ),
}
INPUT_FORMAT = S(
  'input_format',
  None,
  "Of a Gemma: 'turns' for instruction-tuned ones, or a text with {input}.",
)
DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'This is one process of several; see docs/training.md.'
)
# Makes a path good in other folders, too.
ABSOLUTE = {
  'DATA_DIR': object_store.absolute,
  'MODULE': task_modules.absolute,
  'VOCABULARY': start.absolute_spec,
}
CONFIG = train_config.TrainConfig
ENGINE = 'train.gin'


def settings() -> train_config.TrainConfig:
  """The settings, by gin files alone or with the flags above."""
  given = {
    macro: ABSOLUTE.get(macro, lambda value: value)(flag.value)
    for macro, flag in FLAGS.items()
    if flag.value is not None
  }
  short = BENCHMARK.value, STUDENT.value, INPUT_FORMAT.value
  short = any((*given, *short, LABELS_OF.value != LABELS_OF.default))
  if gin_flags.has_files() and not short:
    return gin_flags.build(CONFIG)
  macros = gin_flags.macros()
  input_format = (INPUT_FORMAT.value or '').replace('\\n', '\n')
  if input_format and 'VOCABULARY' in macros:
    raise contract.UserError(
      f"--input_format is {input_format!r} beside gin's VOCABULARY, expected"
      f' one of them. Add it there: {macros["VOCABULARY"]}#{input_format}'
    )
  if input_format and 'VOCABULARY' in given:
    given['VOCABULARY'] = vocabulary_files.with_input_format(
      given['VOCABULARY'], input_format
    )
  request = start.Request(
    benchmark=BENCHMARK.value,
    task=given.get('MIXTURE_OR_TASK_NAME'),
    labels_of=LABELS_OF.value,
    student=STUDENT.value,
    data_dir=given.get('DATA_DIR'),
    vocabulary=given.get('VOCABULARY'),
    input_format=input_format,
    module=given.get('MODULE'),
    allow_pickle=bool(given.get('ALLOW_PICKLE')),
    macros=macros,
  )
  if 'MODEL_DIR' not in given | macros:
    raise contract.UserError('--out is missing. Name the folder of the run.')
  run = gin_flags.build(
    CONFIG,
    engine=gin_flags.implied_engine(CONFIG, ENGINE),
    bindings=[
      gin_flags.short(FLAGS[m], m, value) for m, value in given.items()
    ],
    defaults=start.defaults(request),
  )
  progress.say(start.describe(request, run))
  return run


def help_text() -> str:
  """The macros of the help page, with their short flags."""
  short = {macro: f'--{flag.name}' for macro, flag in FLAGS.items()}
  return gin_flags.help_text(CONFIG, ENGINE, short)


def main() -> int:
  distributed.join(DISTRIBUTED.value)
  run = settings()
  with distributed.together():
    return loop.train(run, config_text=gin_config.operative_text())


if __name__ == '__main__':
  command.run(main, more_help=help_text)
