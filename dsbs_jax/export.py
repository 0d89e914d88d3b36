# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.export --format=hf|t5x|stablehlo --model_dir=... --out=..."""

from absl import flags

from dsbs_jax.exporting import export as export_lib
from dsbs_jax.runtime import command

FORMAT = flags.DEFINE_enum(
  'format', 'hf', ['hf', 't5x', 'stablehlo'], 'Who will load it.'
)
LEGACY = flags.DEFINE_bool('legacy', False, 'The older of T5X formats.')
FLAGS = {
  'model_dir': flags.DEFINE_string(
    'model_dir', '', 'A run, or any checkpoint (T5X, Hugging Face).'
  ),
  'out': flags.DEFINE_string('out', '', 'The folder to write.'),
  'step': flags.DEFINE_string('step', 'latest', 'latest, best or a number.'),
  'vocabulary': flags.DEFINE_string(
    'vocabulary', None, "SentencePiece file; default: the run's."
  ),
  'input_length': flags.DEFINE_integer(
    'input_length', 256, 'StableHLO: tokens of an input at most.'
  ),
  'output_length': flags.DEFINE_integer(
    'output_length', 64, 'StableHLO: tokens of an output at most.'
  ),
  'activations': flags.DEFINE_string(
    'activations', None, 'Of a T5X checkpoint that does not say: gelu,linear.'
  ),
  'allow_pickle': flags.DEFINE_bool(
    'allow_pickle', False, 'Read pytorch_model.bin, by a weights-only loader.'
  ),
}


def main() -> None:
  export = export_lib.ExportConfig(
    **{name: flag.value for name, flag in FLAGS.items()}
  )
  if FORMAT.value == 'hf':
    print(export_lib.to_hugging_face(export))
  elif FORMAT.value == 'stablehlo':
    print(export_lib.to_stablehlo(export))
  else:
    print(export_lib.to_t5x(export, legacy=LEGACY.value))


if __name__ == '__main__':
  command.run(main)
