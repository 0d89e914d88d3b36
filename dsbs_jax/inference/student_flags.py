# SPDX-License-Identifier: Apache-2.0
"""A folder and a few flags in place of gin files, for eval, infer and serve.

The folder says what its student is (`self_description`); a short flag such as
--step is another name of a macro. Later ones override earlier ones: engine
file, folder, gin files, short flags, --gin.NAME.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from absl import flags

from dsbs_jax import contract
from dsbs_jax.inference import student_config
from dsbs_jax.runs import self_description
from dsbs_jax.runtime.configuration import gin_flags, gin_macros

Config = TypeVar('Config', bound=student_config.CheckpointConfig)

# The flags below belong to the door that asks for them.
flags.disclaim_key_flags()
S, B, N = flags.DEFINE_string, flags.DEFINE_bool, flags.DEFINE_integer

_TASK = 'MIXTURE_OR_TASK_NAME'


@dataclasses.dataclass(frozen=True)
class Door:
  """A door that opens a student.

  Attributes:
    verb: its name; its engine file is VERB.gin.
    flags: macro -> the flag that is its short name.
    benchmark: the flag that names a task by its benchmark.
    reads_data: whether it needs the prepared data.
  """

  verb: str
  flags: Mapping[str, flags.FlagHolder]
  benchmark: flags.FlagHolder
  reads_data: bool = False

  def build(
    self,
    config: type[Config],
    folder: str | None,
    *,
    macros: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
  ) -> Config:
    """The settings, by the folder, its flags and gin's.

    Args:
      folder: what the command line names; None leaves all to gin files.
      macros: macro -> what the command line says without a flag, or None.
      defaults: field -> what it is with a folder, if nobody sets it.

    Raises:
      UserError: there is neither a folder nor a gin file, or they do not fit.
    """
    engine = f'{self.verb}.gin'
    bindings = [
      *(f'{m} = {v!r}' for m, v in (macros or {}).items() if v is not None),
      *self._bindings(),
    ]
    if folder is None:
      if not gin_flags.has_files():
        raise contract.UserError(
          f'no run is given, expected its folder: dsbs {self.verb} runs/cqa;'
          f' or gin files: --gin_file=gin/{engine}.'
        )
      return gin_flags.build(config, bindings=bindings)
    if gin_flags.given('CHECKPOINT_PATH'):
      raise contract.UserError(
        f'the student is given twice, as {folder!r} and by'
        ' --gin.CHECKPOINT_PATH. Leave one of the two out.'
      )
    return gin_flags.build(
      config,
      engine=gin_flags.implied_engine(config, engine),
      bindings=[f'CHECKPOINT_PATH = {folder!r}', *bindings],
      defaults=self._defaults(config, folder, defaults or {}),
    )

  def help_text(self, config: type[Config]) -> str:
    """The macros of the help page, with their short flags."""
    short = {macro: f'--{flag.name}' for macro, flag in self.flags.items()}
    return gin_flags.help_text(config, f'{self.verb}.gin', short)

  def _defaults(
    self, config: type[Config], folder: str, more: Mapping[str, Any]
  ) -> gin_macros.Defaults:
    """What the folder says of its student, and more."""
    step = self._step()
    trained = self_description.training(folder, step=step)
    flag = self.flags['ALLOW_PICKLE']
    allow_pickle = 'True' in (gin_flags.given('ALLOW_PICKLE'), str(flag.value))
    network, unknown = self_description.network(
      folder, step=step, allow_pickle=allow_pickle
    )
    missing = {**trained.missing, **unknown}
    if not self.reads_data:
      missing.pop('data_dir', None)
    known = {k: v for k, v in trained.fields.items() if k not in missing}
    fields = self_description.bindings(network)
    return gin_macros.Defaults(
      folder, {config.__name__: {**more, **known}, **fields}, missing
    )

  def _step(self) -> str | int:
    given = gin_flags.given('STEP') or self.flags['STEP'].value or 'latest'
    given = given.strip('\'"')
    return int(given) if given.isdigit() else given

  def _bindings(self) -> list[str]:
    """The short flags that are given, as gin bindings."""
    given = {m: f for m, f in self.flags.items() if f.value is not None}
    bindings = [
      gin_flags.short(flag, macro, _literal(macro, flag.value))
      for macro, flag in given.items()
    ]
    if self.benchmark.value and _TASK not in given:
      task = f'{self.benchmark.value}_gt_dsbs'
      bindings.append(gin_flags.short(self.benchmark, _TASK, task))
    return bindings


def define(
  verb: str, own: Mapping[str, flags.FlagHolder], *, reads_data: bool = False
) -> Door:
  """A door with the flags that all of these doors have, and its own."""
  shared = {
    'STEP': S('step', None, 'Of a run: latest, best or a number.'),
    _TASK: S('task', None, 'What it was trained on, such as cqa_gt_dsbs.'),
    'DATA_DIR': S('data_dir', None, 'Folder that prepare wrote to.'),
    'VOCABULARY': S('vocabulary', None, 'SentencePiece file, or bytes.'),
    'PREFIXES': S('prefixes', None, 'paper or code.'),
    'MODULE': S('module', None, 'Your own module of the benchmark.'),
    'MAX_DECODE_LEN': N('max_decode_len', None, 'Tokens of a label at most.'),
    'SCORE_LABELS': B('score_labels', None, 'Rank labels, generate none.'),
    'ALLOW_PICKLE': B('allow_pickle', None, 'Read pytorch_model.bin.'),
    'BACKEND': S('backend', None, 'auto, jax, ct2 or ct2_int8.'),
  }
  benchmark = S('benchmark', None, 'NAME stands for --task=NAME_gt_dsbs.')
  return Door(verb, shared | own, benchmark, reads_data)


def _literal(macro: str, value: Any) -> Any:
  """A flag's value as gin has it: a tuple for a list, a number for a step."""
  if isinstance(value, list):
    return tuple(value)
  return int(value) if macro == 'STEP' and value.isdigit() else value
