# SPDX-License-Identifier: Apache-2.0
"""What a run starts from, where a few flags say it in place of gin files.

A student gives its network and its vocabulary, the prepared data the task. From
random parameters, size and learning rate are chosen, and said.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import register
from dsbs_jax.data.prepared import own_vocabularies, store, views
from dsbs_jax.data.remote import object_store
from dsbs_jax.data.vocabulary import vocabulary_files
from dsbs_jax.interop import gguf_checkpoint, same_network
from dsbs_jax.runs import results, run_folder, self_description
from dsbs_jax.runtime import gin_files, progress
from dsbs_jax.runtime.configuration import gin_macros
from dsbs_jax.training import train_config

# From random parameters: the largest of our models for a CPU, and a rate at
# which it learns; the default of gin/train.gin is for pretrained ones.
SCRATCH_MODEL = 'mini'
SCRATCH_RATE = 1e-3

_TASK = 'MIXTURE_OR_TASK_NAME'
_LABELS = {'gt': 'human labels', 'llm': "an LLM's labels"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """What the flags of train say of a run's start.

  Attributes:
    benchmark: its name; None where a task is given.
    task: a task or mixture; None for step-by-step, or finetuning where the data
      has no completions.
    labels_of: 'gt' or 'llm': whose labels that is.
    student: a folder, or the name of a file in gin/models; None for a size of
      ours.
    data_dir: what `prepare` wrote to; None for the default one.
    vocabulary: a vocabulary spec; None for the student's or the data's own.
    input_format: what inputs are put into (see `vocabulary_files`), '' for the
      vocabulary's own way.
    module: path or name of the user's module.
    allow_pickle: whether to read a pickled pytorch_model.bin.
    macros: what gin files and --gin flags set.
  """

  benchmark: str | None = None
  task: str | None = None
  labels_of: str = 'gt'
  student: str | None = None
  data_dir: str | None = None
  vocabulary: str | None = None
  input_format: str = ''
  module: str | None = None
  allow_pickle: bool = False
  macros: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    task = self.task or self.macros.get(_TASK)
    if not self.benchmark and not task:
      raise contract.UserError(
        'nothing says what to train on, expected --benchmark=NAME, such as'
        ' --benchmark=cqa, or --task=cqa_gt_dsbs; or gin files:'
        ' --gin_file=gin/train.gin and so on.'
      )
    own = views.own_name(task) if task else None
    for flag, value, usual in (
      ('labels_of', self.labels_of, 'gt'),
      ('benchmark', self.benchmark, getattr(own, 'benchmark', self.benchmark)),
    ):
      if task and value not in (None, usual):
        raise contract.UserError(
          f'--{flag} is {value!r} beside the task {task!r}, expected one of the'
          ' two: the task alone says what is trained. Leave one out.'
        )

  @property
  def folder(self) -> str | None:
    """The absolute path of a pretrained student, None for random parameters."""
    name = self.student
    if name is None or (name in gin_files.models() and os.sep not in name):
      return None
    if object_store.is_bucket(name):
      return name
    if name.endswith(gguf_checkpoint.SUFFIX) and os.path.isfile(name):
      return gguf_checkpoint.converted(name, say=progress.say)
    if pathlib.Path(name).expanduser().is_dir():
      return os.path.abspath(os.path.expanduser(name))
    raise contract.UserError(
      f'--student is {name!r}, expected a folder of a Hugging Face or T5X T5'
      ' (or of a run), of a Gemma 3 or its GGUF file, of a T5Gemma 2, or for'
      f' random parameters one of {", ".join(gin_files.models())}.'
    )

  @property
  def is_random(self) -> bool:
    """Whether the run starts from random parameters."""
    return self.folder is None and 'INITIAL_CHECKPOINT_PATH' not in self.macros


def defaults(request: Request) -> gin_macros.Defaults:
  """What the student and the data say of a run, for what nobody sets.

  Raises:
    UserError: there is no such student or benchmark, or the data is not
      prepared.
  """
  source = register.source(
    data_dir=request.data_dir or request.macros.get('DATA_DIR')
  )
  fields = {'data_dir': object_store.absolute(source.data_dir)}
  if not request.task and request.benchmark:
    fields['mixture_or_task_name'] = _task(request, source.data_dir)
  found = network_defaults(request)
  missing = dict(found.missing)
  if request.folder:
    fields['initial_checkpoint_path'] = request.folder
    trained = self_description.training(request.folder)
    fields['vocabulary'] = trained.fields.get('vocabulary')
    if 'vocabulary' in trained.missing and not request.vocabulary:
      missing['vocabulary'] = trained.missing['vocabulary']
  else:
    fields['vocabulary'] = _data_vocabulary(request, source.data_dir)
  if request.is_random:
    fields['learning_rate'] = SCRATCH_RATE
  if fields['vocabulary']:
    spec = absolute_spec(fields['vocabulary'])
    if request.input_format:
      spec = vocabulary_files.with_input_format(spec, request.input_format)
    fields['vocabulary'] = spec
  given = {name: value for name, value in fields.items() if value is not None}
  bound = {train_config.TrainConfig.__name__: given, **found.fields}
  return dataclasses.replace(found, fields=bound, missing=missing)


def network_defaults(request: Request) -> gin_macros.Defaults:
  """What the student alone says of a run: its network.

  Raises:
    UserError: there is no such student.
  """
  name = request.student or SCRATCH_MODEL
  if request.folder:
    network, missing = self_description.network(
      request.folder, allow_pickle=request.allow_pickle
    )
  else:
    network, missing = named_network(name), {}
  return gin_macros.Defaults(name, self_description.bindings(network), missing)


def describe(request: Request, run: train_config.TrainConfig) -> str:
  """What is about to be trained, in a few lines: the settings of a request."""
  size = f'{results.size_text(results.num_params(run.model))} parameters'
  if run.initial_checkpoint_path:
    student = f'{run.initial_checkpoint_path}, {size}'
  else:
    named = request.student or SCRATCH_MODEL
    if not request.macros.keys().isdisjoint(same_network.FIELDS.values()):
      named = 'as gin sets it'
    student = f'{named}, {size}, random: a pretrained one is --student=FOLDER'
  rate = f'learning rate {run.learning_rate:g}'
  if request.is_random and run.learning_rate == SCRATCH_RATE:
    rate += ' (for random parameters; --lr sets another)'
  if run.lora.rank:
    rate += f', LoRA of rank {run.lora.rank}'
  name = views.own_name(run.mixture_or_task_name)
  is_pair = name is not None and name.form == 'dsbs' and run.paired
  task = run.mixture_or_task_name
  if name is not None and name.label_source:
    task += f': {_LABELS[name.label_source]}'
    task += '' if name.form == 'finetune' else " and an LLM's rationales"
  spec = register.source(vocabulary=run.vocabulary).vocabulary
  lines = {
    'task': task,
    'data': register.source(data_dir=run.data_dir).data_dir,
    'student': student,
    'vocabulary': f'{spec}, {run.model.vocab_size:,} rows',
    'training': f'{run.train_steps:,} steps of {run.batch_size}'
    f' {"pairs" if is_pair else "examples"}, {rate}',
    'out': run.model_dir,
  }
  return '\n'.join(f'{key:10}  {value}' for key, value in lines.items())


def absolute_spec(spec: str) -> str:
  """A vocabulary spec that names the same file in another folder, too."""
  parsed = vocabulary_files.parse_spec(spec)
  path = pathlib.Path(parsed.path).expanduser()
  if parsed.path == vocabulary_files.BYTES or not path.exists():
    return spec
  return dataclasses.replace(parsed, path=str(path.absolute())).text()


def _task(request: Request, data_dir: str) -> str:
  """Step-by-step, or finetuning where nobody wrote rationales."""
  known = register.benchmark(
    request.benchmark, module=request.module, data_dir=data_dir
  )
  train = store.read(known.name, data_dir).metadata['splits'].get('train', {})
  is_answered = train.get('counts', {}).get('answered', 0)
  form = 'dsbs' if is_answered else 'finetune'
  return f'{known.name}_{request.labels_of}_{form}'


def named_network(name: str) -> dict[str, Any]:
  """Field of its config -> value, by a file of gin/models."""
  path = pathlib.Path(gin_files.find(f'models/{name}.gin'))
  macros = run_folder.read_macros(path)
  is_gemma = 'NUM_KV_HEADS' in macros
  fields = same_network.GEMMA_FIELDS if is_gemma else same_network.FIELDS
  return {
    field: macros[macro] for field, macro in fields.items() if macro in macros
  }


def _data_vocabulary(request: Request, data_dir: str) -> str | None:
  """The vocabulary that `prepare --train_vocab` wrote, if nothing is set."""
  if (
    request.vocabulary
    or 'VOCABULARY' in request.macros
    or os.environ.get('DSBS_VOCABULARY')
  ):
    return None
  task = request.task or request.macros.get(_TASK)
  name = request.benchmark or getattr(views.own_name(task), 'benchmark', None)
  return own_vocabularies.only(name, data_dir)
