# SPDX-License-Identifier: Apache-2.0
"""dsbs export FOLDER: a student becomes a folder that others load.

  dsbs export runs/cqa --format=hf --out=cqa-student
  dsbs export runs/cqa --format=stablehlo --step=best
  dsbs export runs/cqa --format=ct2 --quantization=int8
  dsbs export flan-t5-base --format=t5x --out=flan-t5x

FOLDER is a run, one of its checkpoints, an exported folder, or a T5 of Hugging
Face or T5X. Without --out, the folder is FOLDER's name and the format, here:
cqa-hf. Each has a model card, README.md.
"""

from absl import flags

from dsbs_jax import contract
from dsbs_jax.data.remote import buckets, object_store
from dsbs_jax.exporting import answer_check, ct2_gguf_folders
from dsbs_jax.exporting import export as export_lib
from dsbs_jax.runtime import command

FORMAT = flags.DEFINE_enum(
  'format',
  'hf',
  ['hf', 't5x', 'stablehlo', *ct2_gguf_folders.FORMATS],
  'Who will load it.',
)
QUANTIZATION = flags.DEFINE_string(
  'quantization', None, 'ct2, gguf: how weights are stored, such as int8.'
)
CHECK = flags.DEFINE_string(
  'check', None, 'ct2, gguf: split or file that it answers afterwards; none.'
)
MAX_DROP = flags.DEFINE_float(
  'max_drop', 1.0, 'ct2, gguf: points of accuracy that may be lost.'
)
LEGACY = flags.DEFINE_bool('legacy', False, 'The older of T5X formats.')
FLAGS = (
  flags.DEFINE_string('model_dir', '', 'The same as FOLDER.'),
  flags.DEFINE_string('out', '', 'The folder to write.'),
  flags.DEFINE_string('step', 'latest', 'latest, best or a number.'),
  flags.DEFINE_string(
    'vocabulary', None, "SentencePiece file; default: the run's."
  ),
  flags.DEFINE_integer(
    'input_length', 256, 'StableHLO: tokens of an input at most.'
  ),
  flags.DEFINE_integer('output_length', None, 'Tokens of an output at most.'),
  flags.DEFINE_string(
    'activations', None, 'Of a T5X checkpoint that does not say: gelu,linear.'
  ),
  flags.DEFINE_bool(
    'allow_pickle', False, 'Read pytorch_model.bin, by a weights-only loader.'
  ),
)


def main(folder: str | None = None) -> int:
  values = command.values(FLAGS)
  if folder is not None:
    if values['model_dir'] not in ('', folder):
      raise contract.UserError(
        f'the student is given twice, as {folder!r} and --model_dir. Leave one'
        ' of the two out.'
      )
    values['model_dir'] = folder
    values['out'] = values['out'] or export_lib.default_out(
      folder, FORMAT.value
    )
  with buckets.output(values['out']) as out:
    if object_store.is_bucket(values['out']):
      values['out'] = str(out)
    return _export(export_lib.ExportConfig(**values))


def _export(export: export_lib.ExportConfig) -> int:
  if FORMAT.value in ct2_gguf_folders.FORMATS:
    return ct2_gguf_folders.export(
      export,
      FORMAT.value,
      quantization=QUANTIZATION.value,
      check=answer_check.CheckConfig(
        source=CHECK.value, max_drop=MAX_DROP.value
      ),
    )
  for flag in (QUANTIZATION, CHECK):
    if flag.value is not None:
      raise contract.UserError(
        f'--{flag.name} is {flag.value!r}, but --format={FORMAT.value} has no'
        f' such choice, expected one of {tuple(ct2_gguf_folders.FORMATS)}. Leave'
        ' it out.'
      )
  if FORMAT.value == 'hf':
    # Imported here: no other format needs safetensors.
    from dsbs_jax.exporting import hf_folder

    said = hf_folder.to_hugging_face(export)
  elif FORMAT.value == 'stablehlo':
    from dsbs_jax.exporting import stablehlo  # likewise

    said = stablehlo.to_stablehlo(export)
  else:
    said = export_lib.to_t5x(export, legacy=LEGACY.value)
  print(buckets.shown(said))
  return 0


if __name__ == '__main__':
  command.run(main, most_arguments=1)
