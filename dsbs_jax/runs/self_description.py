# SPDX-License-Identifier: Apache-2.0
"""What a folder says of the student in it: network, task, data, vocabulary.

The folder is a run, one of its checkpoints, an exported folder, or a T5 of
Hugging Face or T5X. Other people's folders say less; what nobody can know is
an error that names the flag.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import (
  buckets,
  declared,
  object_store,
  register,
  task_modules,
  vocabulary_files,
)
from dsbs_jax.interop import (
  read_checkpoint,
  same_network,
  t5x_read_checkpoint,
  t5x_storage,
)
from dsbs_jax.runs import checkpoints, run_folder

# What an exported folder keeps of its run: the metadata of the checkpoint, and
# the run's config.
METADATA_FILE = 'run.json'
EXPORTED_CONFIG = 'training.gin'
# Key of the metadata: the step of the checkpoint that was exported.
EXPORTED_STEP = 'exported_step'

# Field of the settings -> macro of the run's config.
_MACROS = {
  'mixture_or_task_name': 'MIXTURE_OR_TASK_NAME',
  'data_dir': 'DATA_DIR',
  'vocabulary': 'VOCABULARY',
  'prefixes': 'PREFIXES',
  'module': 'MODULE',
  'max_decode_len': 'MAX_DECODE_LEN',
  'rationale_choice': 'RATIONALE_CHOICE',
}
_TOKENIZERS = (
  'spiece.model',
  'tokenizer.model',
  'tokenizer.json',
  'tokenizer_config.json',
)
# What export writes for StableHLO, llama.cpp and CTranslate2.
_PROGRAMS = ('model.stablehlo', 'model.gguf', 'model.bin')
_EXPECTED = (
  'expected a run (config.gin and checkpoint_<n>), one of its checkpoints, or'
  ' an exported, Hugging Face or T5X folder'
)


@dataclasses.dataclass(frozen=True)
class Training:
  """What a student was trained on.

  Attributes:
    place: the folder.
    fields: field of the settings -> value, for those that it says.
    missing: field -> an error that says why this is of no use, and the remedy.
  """

  place: str
  fields: Mapping[str, Any]
  missing: Mapping[str, str]

  def settle(self, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `given`, and for None what the folder says.

    Args:
      given: field -> what the user set, or None.

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

  A run that has no checkpoint yet has this, too.

  Args:
    folder: see the module.
    step: 'latest', 'best' or a number, of a run's folder.

  A benchmark that was described without Python is known from then on.

  Raises:
    UserError: the folder is none of these, or a file in it is damaged.
  """
  path = _path(folder)
  if not path.is_dir():
    problem = 'is a file' if path.exists() else 'does not exist'
    raise contract.UserError(f'{folder!r} {problem}, {_EXPECTED}.')
  if (path / run_folder.CONFIG_FILE).is_file() and not checkpoints.folders(
    path
  ):
    return _training(folder, macros(path), {})
  checkpoint = _checkpoint(folder, step)
  run = metadata(checkpoint)
  if run.get(declared.KEY):
    _declare(declared.from_json(run[declared.KEY], str(checkpoint)))
  return _training(folder, macros(checkpoint), run)


def network(
  folder: str, *, step: str | int = 'latest', allow_pickle: bool = False
) -> tuple[dict[str, Any], dict[str, str]]:
  """The network of the student in a folder.

  Args:
    folder: see the module.
    step: 'latest', 'best' or a number, of a run's folder.
    allow_pickle: whether to read a pickled pytorch_model.bin.

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


def metadata(checkpoint: pathlib.Path) -> dict[str, Any]:
  """What the run of a checkpoint was made of, {} where that is not known."""
  if not read_checkpoint.is_hugging_face(str(checkpoint)):
    return read_checkpoint.run_metadata(str(checkpoint))
  file = checkpoint / METADATA_FILE
  if not file.is_file():
    return {}
  try:
    return dict(json.loads(file.read_text(encoding='utf-8')))
  except (ValueError, TypeError) as error:
    raise contract.UserError(
      f'{file} cannot be read ({error}), expected the JSON object that export'
      ' writes. Export the run again.'
    ) from error


def trained_steps(checkpoint: pathlib.Path, step: int) -> int:
  """How many steps trained the student in a checkpoint.

  Args:
    checkpoint: its folder.
    step: what the folder's name says, 0 for nothing.

  Returns:
    What export wrote down, else `step`.
  """
  if not _is_checkpoint(checkpoint):
    return step
  return int(metadata(checkpoint).get(EXPORTED_STEP, step))


def config_file(checkpoint: pathlib.Path) -> pathlib.Path | None:
  """The config of the run that a checkpoint is of, None without one."""
  is_whole = read_checkpoint.is_hugging_face(str(checkpoint))
  folders = (checkpoint,) if is_whole else (checkpoint, checkpoint.parent)
  files = (
    folder / name
    for folder in folders
    for name in (run_folder.CONFIG_FILE, EXPORTED_CONFIG)
  )
  return next(filter(pathlib.Path.is_file, files), None)


def macros(checkpoint: pathlib.Path) -> dict[str, Any]:
  """The macros of that config that are values, not references."""
  file = config_file(checkpoint)
  found = run_folder.read_macros(file) if file else {}
  return {
    macro: value
    for macro, value in found.items()
    if not (isinstance(value, str) and value.startswith(('%', '@')))
  }


def _declare(said: declared.Description) -> None:
  """Makes a benchmark known whose data is perhaps on another machine."""
  with register.without_seqio():
    known = benchmark_lib.get(said.name)
    if known is None or declared.is_made(known):
      register.declare(said)


def _path(folder: str) -> pathlib.Path:
  """The folder; of one in a bucket, the copy here."""
  if object_store.is_bucket(folder):
    return checkpoints.local_copy(folder)
  return pathlib.Path(folder)


def _checkpoint(folder: str, step: str | int) -> pathlib.Path:
  path = _path(folder)
  if (path / run_folder.CONFIG_FILE).is_file() and not any(
    (*path.glob(f'{checkpoints.PREFIX}_*'), _is_checkpoint(path))
  ):
    raise contract.UserError(
      f'{folder} is a run without a checkpoint, expected one that was trained'
      ' to its first EVAL_PERIOD. Wait for it, or train on.'
    )
  if any((path / name).is_file() for name in _PROGRAMS):
    raise contract.UserError(
      f'{folder} is a program, {_EXPECTED}. Run it: python {folder}/run.py.'
    )
  checkpoint, _ = checkpoints.find_checkpoint(folder, step, arrays=False)
  if _is_checkpoint(checkpoint):
    return checkpoint
  names = sorted(child.name for child in path.iterdir())
  there = ', '.join(names[:6]) or 'nothing'
  raise contract.UserError(f'{folder} holds {there}, {_EXPECTED}.')


def _is_checkpoint(path: pathlib.Path) -> bool:
  place = epath.Path(path)
  return (
    read_checkpoint.is_hugging_face(str(path))
    or t5x_storage.is_legacy(place)
    or t5x_storage.orbax_state(place) is not None
  )


def _training(
  folder: str, config: Mapping[str, Any], run: Mapping[str, Any]
) -> Training:
  found = {field: config.get(macro) for field, macro in _MACROS.items()}
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
  moved = (
    f'{folder} was trained with {{}} {{!r}}, which is not there.{{}} Add {{}}'
  )
  vocabulary, data_dir = found['vocabulary'], found['data_dir']
  if vocabulary and not _is_there(vocabulary_files.parse_spec(vocabulary).path):
    missing['vocabulary'] = moved.format(
      *('the vocabulary', vocabulary, _relative(vocabulary)),
      '--vocabulary=FILE with its new place.',
    )
  if data_dir and not _is_there(data_dir):
    missing['data_dir'] = moved.format(
      *('the data in', data_dir, _relative(data_dir)),
      '--data_dir=FOLDER with its new place.',
    )
  module = found['module']
  if module and task_modules.is_path(module) and not _is_there(module):
    missing['module'] = moved.format(
      *('the module', module, _relative(module)),
      '--module=FILE with its new place.',
    )
  known = {name: value for name, value in found.items() if value is not None}
  return Training(folder, known, missing)


def _is_there(path: str) -> bool:
  is_name = path == vocabulary_files.BYTES or '://' in path
  return is_name or pathlib.Path(path).expanduser().exists()


def _relative(path: str) -> str:
  """What else can be wrong with a relative path."""
  if pathlib.Path(path).expanduser().is_absolute():
    return ''
  return ' Run in the folder that it was trained from, or name it:'
