# SPDX-License-Identifier: Apache-2.0
"""What a folder says of the student in it: network, task, data, vocabulary.

The folder is a run, one of its checkpoints, an exported folder, or a T5 of
Hugging Face or T5X. Other people's folders say less; what nobody can know is
an error that names the flag.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import declared, register, task_modules
from dsbs_jax.data.remote import buckets, object_store
from dsbs_jax.data.vocabulary import vocabulary_files
from dsbs_jax.interop import read_checkpoint, same_network, t5x_read_checkpoint
from dsbs_jax.runs import checkpoint_folders, run_folder, run_metadata

# Fields of the settings; the macros of the run's config have their names.
_FIELDS = (
  *('mixture_or_task_name', 'data_dir', 'vocabulary', 'prefixes', 'module'),
  *('max_decode_len', 'rationale_choice'),
)
_TOKENIZERS = (
  'spiece.model',
  'tokenizer.model',
  'tokenizer.json',
  'tokenizer_config.json',
)
# Fields whose values are files, which may have moved since.
_MOVABLE = (
  ('vocabulary', 'the vocabulary', '--vocabulary=FILE'),
  ('data_dir', 'the data in', '--data_dir=FOLDER'),
  ('module', 'the module', '--module=FILE'),
)
# What export writes for StableHLO, llama.cpp and CTranslate2.
_PROGRAMS = ('model.stablehlo', 'model.gguf', 'model.bin')
_EXPECTED = (
  'expected a run (config.gin and checkpoint_<n>), one of its checkpoints, or'
  ' an exported, Hugging Face or T5X folder'
)


@dataclasses.dataclass(frozen=True)
class Training:
  """What a student was trained on."""

  place: str  # the folder
  fields: Mapping[str, Any]  # of the settings, for those that it says
  missing: Mapping[str, str]  # field -> an error that tells the remedy

  def settle(self, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the user has given, and for None what the folder says.

    Raises:
      UserError: neither the user nor the folder says it, and it is needed.
    """
    settled = {}
    for name, value in given.items():
      if value is None and name in self.missing:
        raise contract.UserError(self.missing[name])
      settled[name] = self.fields.get(name) if value is None else value
    return settled


def training(folder: str, *, step: str | int = 'latest') -> Training:
  """What the student in a folder was trained on.

  A run that has no checkpoint yet has this, too. A benchmark that was described
  without Python is known from then on. `step` is that of `find_checkpoint`.

  Raises:
    UserError: the folder is none of these, or a file in it is damaged.
  """
  path = _path(folder)
  if not path.is_dir():
    problem = 'is a file' if path.exists() else 'does not exist'
    raise contract.UserError(f'{folder!r} {problem}, {_EXPECTED}.')
  is_run = (path / run_folder.CONFIG_FILE).is_file()
  if is_run and not checkpoint_folders.folders(path):
    return _training(folder, run_metadata.macros(path), {})
  checkpoint = _checkpoint(folder, step)
  run = run_metadata.metadata(checkpoint)
  if run.get(declared.KEY):
    _declare(declared.from_json(run[declared.KEY], str(checkpoint)))
  return _training(folder, run_metadata.macros(checkpoint), run)


def network(
  folder: str, *, step: str | int = 'latest', allow_pickle: bool = False
) -> tuple[dict[str, Any], dict[str, str]]:
  """The network of the student in a folder, at a `step` of `find_checkpoint`.

  Returns:
    Field of its config -> value, for those that decide what is computed; and
    field -> an error, for those that the folder does not say.

  Raises:
    UserError: the folder has no checkpoint, or a damaged one.
  """
  checkpoint = _checkpoint(folder, step)
  if read_checkpoint.is_hugging_face(str(checkpoint)):
    # Imported here: no other format needs safetensors.
    from dsbs_jax.interop.hf import hf_checkpoint

    config = hf_checkpoint.config_from_hf(checkpoint, allow_pickle=allow_pickle)
    found = dataclasses.asdict(config)
  else:
    found = read_checkpoint.stated_network(str(checkpoint))
    if len(found) < len(same_network.fields_of(found)):
      buckets.complete(checkpoint)  # shapes are told by arrays
      inferred = t5x_read_checkpoint.infer_config(str(checkpoint))
      if 'mlp_activations' not in found:
        found = {'mlp_activations': None, **found}
      found = dataclasses.asdict(inferred) | found
  if 'num_kv_heads' in found:
    return {name: found[name] for name in same_network.GEMMA_FIELDS}, {}
  known = {name: found[name] for name in same_network.FIELDS}
  if known['mlp_activations'] is None:
    del known['mlp_activations']
    return known, {
      'mlp_activations': f'{folder} does not say what the activations of its'
      ' network are, and shapes do not tell. Add'
      " --gin.MLP_ACTIVATIONS=\"('gelu', 'linear')\" for T5 1.1, FLAN-T5 and"
      " mT5, ('silu', 'linear') for UL2, ('relu',) for T5 1.0."
    }
  known['mlp_activations'] = tuple(known['mlp_activations'])
  return known, {}


def bindings(network: Mapping[str, Any]) -> dict[str, Any]:
  """What a network's fields bind, for `gin_macros.Defaults`."""
  is_gemma = 'num_kv_heads' in network
  return {'GemmaConfig' if is_gemma else 'T5Config': network}


def _declare(said: declared.Description) -> None:
  """Makes a benchmark known whose data is perhaps on another machine."""
  with register.without_seqio():
    known = benchmark_lib.get(said.name)
    if known is None or declared.is_made(known):
      register.declare(said)


def _path(folder: str) -> pathlib.Path:
  """The folder; of one in a bucket, the copy here."""
  if object_store.is_bucket(folder):
    return checkpoint_folders.local_copy(folder)
  return pathlib.Path(folder)


def _checkpoint(folder: str, step: str | int) -> pathlib.Path:
  path = _path(folder)
  if (path / run_folder.CONFIG_FILE).is_file() and not any(
    (
      *path.glob(f'{checkpoint_folders.PREFIX}_*'),
      run_metadata.is_checkpoint(path),
    )
  ):
    raise contract.UserError(
      f'{folder} is a run without a checkpoint, expected one that was trained'
      ' to its first EVAL_PERIOD. Wait for it, or train on.'
    )
  if any((path / name).is_file() for name in _PROGRAMS):
    raise contract.UserError(
      f'{folder} is a program, {_EXPECTED}. Run it: python {folder}/run.py.'
    )
  checkpoint, _ = checkpoint_folders.find_checkpoint(folder, step, arrays=False)
  if run_metadata.is_checkpoint(checkpoint):
    return checkpoint
  names = sorted(child.name for child in path.iterdir())
  there = ', '.join(names[:6]) or 'nothing'
  raise contract.UserError(f'{folder} holds {there}, {_EXPECTED}.')


def _training(
  folder: str, config: Mapping[str, Any], run: Mapping[str, Any]
) -> Training:
  found = {field: config.get(field.upper()) for field in _FIELDS}
  # The metadata knows what the environment set, too.
  for name, key in (('mixture_or_task_name', 'task'), ('prefixes', 'prefixes')):
    found[name] = run.get(key) or found[name]
  missing = {}
  if not found['mixture_or_task_name']:
    missing['mixture_or_task_name'] = (
      f'{folder} does not say what it was trained on. Add --benchmark=NAME (its'
      ' NAME_gt_dsbs), or the task, such as --task=cqa_gt_finetune.'
    )
  if read_checkpoint.is_hugging_face(str(_path(folder))):
    trained_with = found['vocabulary'] or vocabulary_files.BYTES
    found['vocabulary'] = vocabulary_files.with_input_format(
      folder, vocabulary_files.parse_spec(trained_with).input_format
    )
    if not any((_path(folder) / name).is_file() for name in _TOKENIZERS):
      found['vocabulary'] = None
      missing['vocabulary'] = (
        f'{folder} has no tokenizer ({", ".join(_TOKENIZERS)}), so that its'
        ' vocabulary is not known. Add --vocabulary=FILE.'
      )
  for name, words, flag in _MOVABLE:
    value = found[name]
    if value and not _is_there(name, value):
      missing[name] = (
        f'{folder} was trained with {words} {value!r}, which is not there.'
        f'{_relative(value)} Add {flag} with its new place.'
      )
  known = {name: value for name, value in found.items() if value is not None}
  return Training(folder, known, missing)


def _is_there(field: str, value: str) -> bool:
  """Whether what a field names is here, or need not be."""
  if field == 'module' and not task_modules.is_path(value):
    return True
  if field == 'vocabulary':
    value = vocabulary_files.parse_spec(value).path
  is_name = value == vocabulary_files.BYTES or '://' in value
  return is_name or pathlib.Path(value).expanduser().exists()


def _relative(path: str) -> str:
  """What else can be wrong with a relative path."""
  if pathlib.Path(path).expanduser().is_absolute():
    return ''
  return ' Run in the folder that it was trained from, or name it:'
