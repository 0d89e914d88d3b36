# SPDX-License-Identifier: Apache-2.0
"""dsbs infer FOLDER [INPUT]: a student answers every line of a file.

  dsbs infer runs/cqa questions.jsonl --out=answers.jsonl
  echo 'Where do fish live?' | dsbs infer runs/cqa
  dsbs infer runs/cqa rows.jsonl --rows --rationales --step=best

FOLDER is a run, one of its checkpoints, an exported folder, or a T5 of Hugging
Face or T5X. INPUT holds plain lines, JSON lines with "input", or with --rows
the benchmark's own; without it, or as -, it is stdin. Without FOLDER, gin files
say it: python -m dsbs_jax.infer --gin_file=gin/infer.gin ...
"""

from absl import flags

from dsbs_jax.inference import infer_file, student_flags
from dsbs_jax.runtime import command

ROWS = flags.DEFINE_bool('rows', False, "Lines are the benchmark's raw rows.")
DOOR = student_flags.define(
  'infer',
  {
    'OUTPUT': flags.DEFINE_string('out', None, 'File to write; else stdout.'),
    'RATIONALES': flags.DEFINE_bool('rationales', None, 'Write them, too.'),
  },
)
CONFIG = infer_file.InferConfig


def main(folder: str | None = None, lines: str | None = None) -> int:
  stream = infer_file.STREAM
  config = DOOR.build(
    CONFIG,
    folder,
    macros={'INPUT': lines},
    defaults={'input': stream, 'output': stream},
  )
  return infer_file.infer(config.reading_rows() if ROWS.value else config)


if __name__ == '__main__':
  command.run(main, most_arguments=2, more_help=lambda: DOOR.help_text(CONFIG))
