# SPDX-License-Identifier: Apache-2.0
"""Exports a checkpoint of any known format to a folder that others load."""

import dataclasses
import pathlib
from typing import Any

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.exporting import checkpoint_facts, model_card
from dsbs_jax.interop import (
  read_checkpoint,
  t5x_layers,
  t5x_read_checkpoint,
  t5x_write_checkpoint,
)
from dsbs_jax.runs import checkpoint_folders, run_metadata, self_description
from dsbs_jax.runtime import field_checks, progress

# The line of an engine's script that stands for run_scripts/text.py.
_SHARED_IMPORT = (
  'from dsbs_jax.exporting.run_scripts.text import Text, answer_lines\n'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
  """What to export, and where to.

  Attributes:
    model_dir: a run's folder or one of its checkpoints; or a T5X or Hugging
      Face checkpoint.
    out: the folder to write.
    step: 'latest', 'best' (on validation) or a number, of a run's folder.
    vocabulary: SentencePiece file to export with it; None takes the run's
      own.
    input_length: of a StableHLO program, tokens of an input at most.
    output_length: of a program, tokens of an output at most; None takes the
      run's MAX_DECODE_LEN, and 64 where it has none.
    activations: of a T5X checkpoint that does not say, such as 'gelu,linear'.
    allow_pickle: whether to read a pickled pytorch_model.bin, by torch's
      weights-only loader.
  """

  model_dir: str
  out: str
  step: str = 'latest'
  vocabulary: str | None = None
  input_length: int = 256
  output_length: int | None = None
  activations: str | None = None
  allow_pickle: bool = False

  def __post_init__(self):
    for name in ('model_dir', 'out'):
      if not getattr(self, name):
        raise contract.UserError(f'--{name} is not given, expected a folder.')
    field_checks.counts(self, 'input_length')
    if self.output_length is not None:
      field_checks.counts(self, 'output_length')


def default_out(folder: str, form: str) -> str:
  """The folder in the working directory that an export is written to.

  Args:
    folder: what is exported: 'runs/cqa' or 'runs/cqa/checkpoint_500'.
    form: its format: 'hf' gives 'cqa-hf' or 'cqa-500-hf'.
  """
  path = pathlib.Path(folder).absolute()
  step = path.name.removeprefix(f'{checkpoint_folders.PREFIX}_')
  name = path.name if step == path.name else f'{path.parent.name}-{step}'
  return f'{name}-{form}'


def to_t5x(export: ExportConfig, *, legacy: bool = False) -> str:
  """Writes `out/checkpoint_<n>` for T5X; returns a sentence about it.

  A run that used Adafactor keeps its step and its optimizer's state. Any other
  starts T5X's optimizer afresh, hence at step 0.

  Args:
    legacy: whether the checkpoint has the format of T5X's public ones instead
      of Orbax's.
  """
  found, params = open_checkpoint(export)
  check_t5(found, 't5x')
  if found.config.relpos_bias_per_layer:
    raise contract.UserError(
      f'{found.path} has a table of relative positions per layer (umT5), but'
      " the T5 of T5X's example has one per stack, so that --format=t5x cannot"
      ' hold it. Export with --format=hf, ct2, gguf or stablehlo.'
    )
  step, moments = found.step, None
  if not read_checkpoint.is_hugging_face(str(found.path)):
    moments = t5x_write_checkpoint.read_moments(str(found.path), found.config)
  kind = 'with its Adafactor state'
  if moments is None:
    step, kind = 0, 'with a fresh Adafactor state'
    shapes = t5x_layers.unrolled_shapes(found.config)
    moments = t5x_write_checkpoint.fresh_moments(shapes)
  written = t5x_write_checkpoint.save(
    export.out,
    params,
    found.config,
    step=step,
    moments=moments,
    legacy=legacy,
    run=found.metadata,
  )
  model_card.write(
    export.out,
    found,
    library='t5x',
    usage=f'A T5X checkpoint, {kind}: `{pathlib.Path(written).name}/`. Give its'
    ' path as `INITIAL_CHECKPOINT_PATH` or `CHECKPOINT_PATH`.',
  )
  return f'{written}: {found.path} for T5X, {kind}'


def check_t5(found: checkpoint_facts.Checkpoint, form: str) -> None:
  """Raises UserError where a format of a T5 alone gets another network."""
  if not isinstance(found.config, network.T5Config):
    other = 'CTranslate2' if found.config.has_encoder else 'llama.cpp'
    raise contract.UserError(
      f'{found.path} is a Gemma, but --format={form} writes a T5 alone. Export'
      f" with --format=hf, which transformers and {other}'s converter read."
    )


def write_run_script(folder: pathlib.Path, engine: str) -> None:
  """Writes run.py: an engine's script, with what all of them share in it."""
  scripts = pathlib.Path(__file__).parent / 'run_scripts'
  shared = (scripts / 'text.py').read_text().partition('"""\n\n')[2]
  script = (scripts / f'{engine}.py').read_text()
  (folder / 'run.py').write_text(script.replace(_SHARED_IMPORT, shared))


def open_checkpoint(
  export: ExportConfig,
) -> tuple[checkpoint_facts.Checkpoint, Any]:
  """The checkpoint, and its parameters as NumPy arrays."""
  asked = int(export.step) if export.step.isdigit() else export.step
  path, step = checkpoint_folders.find_checkpoint(export.model_dir, asked)
  choice = checkpoint_folders.describe_choice(export.model_dir, asked)
  progress.say(f'reading {path}{choice}')
  step = run_metadata.trained_steps(path, step)
  metadata = run_metadata.metadata(path)
  if metadata:
    metadata = {**metadata, run_metadata.EXPORTED_STEP: step}
  if read_checkpoint.is_hugging_face(str(path)):
    from dsbs_jax.interop.hf import hf_checkpoint

    config = hf_checkpoint.config_from_hf(
      path, allow_pickle=export.allow_pickle
    )
  elif 'model' in metadata:
    config = network.make_config(metadata['model'])
  else:
    config, metadata = _infer_config(str(path), export.activations), {}
  params = read_checkpoint.load_params(
    path, config, allow_pickle=export.allow_pickle
  )
  return checkpoint_facts.Checkpoint(path, step, config, metadata), params


def _infer_config(path: str, given: str | None) -> network.T5Config:
  """The network of a T5X checkpoint of others, by its shapes and config.gin."""
  stated = read_checkpoint.stated_network(path).get('mlp_activations')
  activations = stated or (given.split(',') if given else None)
  if activations is None:
    raise contract.UserError(
      f'{path} does not say what the activations of its network are, and'
      ' shapes do not tell. Give --activations=gelu,linear for T5 1.1,'
      ' FLAN-T5 and mT5, silu,linear for UL2, relu for T5 1.0.'
    )
  return dataclasses.replace(
    t5x_read_checkpoint.infer_config(path), mlp_activations=tuple(activations)
  )


def require_vocabulary(
  export: ExportConfig, found: checkpoint_facts.Checkpoint
) -> vocabularies.Vocabulary:
  """As `find_vocabulary`; raises UserError where none is known."""
  vocabulary = find_vocabulary(export, found)
  if vocabulary is None:
    raise contract.UserError(
      f'{export.model_dir} names no vocabulary, without which run.py reads no'
      ' text. Give --vocabulary.'
    )
  return vocabulary


def find_vocabulary(
  export: ExportConfig, found: checkpoint_facts.Checkpoint
) -> vocabularies.Vocabulary | None:
  """The vocabulary to export, None if unknown.

  Raises:
    UserError: the file is not that of training, or has more ids than the model
      has rows.
  """
  trained = self_description.training(str(found.path))
  given = export.vocabulary or trained.fields.get('vocabulary')
  if given is None:
    return None
  trained.settle({'vocabulary': export.vocabulary})
  vocabulary = vocabularies.load(given)
  trained_with = found.metadata.get('vocabulary')
  # Hugging Face keeps the same ids in files of other kinds.
  is_hf = read_checkpoint.is_hugging_face(str(found.path))
  if not is_hf and trained_with not in (None, vocabulary.fingerprint):
    raise contract.UserError(
      f'{export.model_dir} was trained with vocabulary {trained_with}, but'
      f' {given} is {vocabulary.fingerprint}. Give the right file with'
      ' --vocabulary.'
    )
  vocabularies.check_size(vocabulary, found.config.vocab_size)
  return vocabulary
