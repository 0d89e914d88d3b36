# SPDX-License-Identifier: Apache-2.0
"""Names of runs: benchmark, method, model, fraction of the data, seed.

The name of a run's folder holds its coordinates, so that sweeps, jobs of a
cluster and the report agree on them without another file:

  cqa_gt_dsbs-tiny-f0.25-s0            benchmark_method-model-fraction-seed
  cqa_gt_dsbs-tiny-f0.25-s0-ALPHA=0.3  and what else was varied
"""

import dataclasses
import decimal
import re

from dsbs_jax import contract

# Methods by the last two parts of their task's name, in the order of tables.
METHODS = {
  'gt_finetune': 'Standard finetuning',
  'gt_dsbs': 'Step-by-step, human labels',
  'gt_single': 'Single task, human labels',
  'gt_answer_first': 'Answer first, human labels',
  'llm_finetune': 'Standard distillation',
  'llm_dsbs': 'Step-by-step, LLM labels',
  'llm_single': 'Single task, LLM labels',
  'llm_answer_first': 'Answer first, LLM labels',
  'gt_label': 'Label task alone, human labels',
  'llm_label': 'Label task alone, LLM labels',
}

_MODEL = re.compile(r'[A-Za-z0-9_.]+')
_NAME = re.compile(
  r'(?P<task>[a-z0-9_]+)-(?P<model>[A-Za-z0-9_.]+)-f(?P<fraction>[0-9.]+)'
  r'-s(?P<seed>[0-9]+)(?P<setting>(?:-[A-Za-z][\w.]*=[^/]*)?)'
)
_SETTING = re.compile(r'-(?=[A-Za-z][\w.]*=)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coordinates:
  """One point of a sweep."""

  benchmark: str
  method: str  # a key of `METHODS`
  model: str  # name of the model's gin file, without its ending
  fraction: float = 1.0  # of the training data, in (0, 1]
  seed: int = 0  # of the subset, the parameters and the data order
  setting: tuple[str, ...] = ()  # what else was varied, such as 'ALPHA=0.3'

  def __post_init__(self):
    methods = f'one of {", ".join(METHODS)}. Correct --methods'
    named = 'letters, digits, _ and dots. Rename its gin file'
    share = 'a number in (0, 1]. Correct --fractions'
    for right, found, expected in (
      (self.method in METHODS, f'method is {self.method!r}', methods),
      (_MODEL.fullmatch(self.model), f'model is named {self.model!r}', named),
      (0 < self.fraction <= 1, f'fraction is {self.fraction}', share),
      (self.seed >= 0, f'seed is {self.seed}', '0 or more'),
    ):
      if not right:
        raise contract.UserError(f'the {found}, expected {expected}.')

  @property
  def task(self) -> str:
    """The task or mixture that is trained on."""
    return f'{self.benchmark}_{self.method}'

  @property
  def name(self) -> str:
    """The name of the run's folder."""
    parts = (
      self.task,
      self.model,
      f'f{decimal_text(self.fraction)}',
      f's{self.seed}',
      *(_slug(setting) for setting in self.setting),
    )
    return '-'.join(parts)

  @property
  def title(self) -> str:
    """The method in words, with what else was varied."""
    return ', '.join((METHODS[self.method], *self.setting))


def parse(name: str) -> Coordinates | None:
  """Reads a folder's name; None where it is not one of a sweep."""
  match = _NAME.fullmatch(name)
  if match is None:
    return None
  try:
    task = contract.parse_task_name(match['task'])
    return Coordinates(
      benchmark=task.benchmark,
      method=f'{task.label_source}_{task.form}',
      model=match['model'],
      fraction=float(match['fraction']),
      seed=int(match['seed']),
      setting=tuple(part for part in _SETTING.split(match['setting']) if part),
    )
  except ValueError:
    return None  # it only looks like the name of a run


def decimal_text(number: float) -> str:
  """A number without an exponent: 0.125, 1, 0.00001."""
  text = format(decimal.Decimal(repr(float(number))), 'f')
  return text.rstrip('0').rstrip('.') if '.' in text else text


def _slug(setting: str) -> str:
  """A gin binding as part of a folder's name: no blanks, quotes or slashes."""
  name, _, value = setting.partition('=')
  return f'{name}={re.sub(r"[^A-Za-z0-9_.+-]+", "_", value.strip()).strip("_")}'
