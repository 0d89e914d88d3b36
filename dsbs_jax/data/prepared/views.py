# SPDX-License-Identifier: Apache-2.0
"""A task's or mixture's name -> the tokens behind each row group."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dsbs_jax import contract
from dsbs_jax.data.prepared import rationale_rules, rationale_tokens, tokens


def load(
  name: str,
  split: str,
  source: tokens.Source,
  *,
  paired: bool = True,
  rates: Mapping[str, float] | None = None,
  rationale_choice: str = rationale_rules.FIRST,
  further_views: Sequence[str] = (),
) -> tuple[dict[str, list[tokens.Tokens]], list[float] | None]:
  """The tasks behind each row group of a batch.

  Args:
    paired: whether a `_dsbs` mixture gives label and rationale of the same
      examples, as two row groups, instead of mixing its tasks in one.
    rates: task -> sampling rate where tasks are mixed; None takes the
      mixture's own, equal for `_dsbs`.
    rationale_choice: which of a row's several rationales visits in train
      choose from, a rule of `rationale_rules`.
    further_views: of `contract.TASK_IDS`, those that a `_dsbs` mixture has,
      too. Of these a `_single` task takes 'counterfactual'.

  Returns:
    The tokens of each row group, and the rate of each task where they are
    mixed in one group, else None.

  Raises:
    UserError: nothing has this name, or it lacks the split.
  """
  parsed = own_name(name)
  rationale_rules.check(rationale_choice)
  if parsed is None:
    if rationale_choice != rationale_rules.FIRST:
      raise contract.UserError(
        f'RATIONALE_CHOICE is {rationale_choice!r}, but {name!r} is no task of'
        ' this project, expected one whose rows have rationales. Leave it out.'
      )
    # Brings seqio and TensorFlow.
    from dsbs_jax.data.seqio_tasks import other_tasks

    return _mixture(*other_tasks.load(name, split, source), rates)

  def load_task(task: str) -> tokens.Tokens:
    found = tokens.load(task, split, source)
    if split != 'train':  # only training visits a row more than once
      return found
    return rationale_tokens.load(
      found,
      source,
      rule=rationale_choice,
      label_source=parsed.label_source or 'gt',
    )

  if parsed.form != 'dsbs':
    view = _VIEW_OF_TERM[contract.term_of(parsed.form)]
    further_views = set(further_views) & _WITH.get(parsed.form, set())
    if not further_views:
      return {view: [load_task(name)]}, None
    paired = True
  names = tasks_of(parsed) + tuple(
    str(contract.TaskName(parsed.benchmark, None, form))
    for form in further_views
  )
  tasks = [load_task(task) for task in names]
  if not paired:
    return _mixture(tasks, [1.0] * len(tasks), rates)
  _check_paired(tasks, source)
  return {_VIEW_OF_TERM[task.term]: [task] for task in tasks}, None


# Further views of what is no mixture.
_WITH = {'single': {'counterfactual'}}
_VIEW_OF_TERM = {task_id: name for name, task_id in contract.TASK_IDS.items()}


def _check_paired(tasks: list[tokens.Tokens], source: tokens.Source) -> None:
  """Raises UserError unless all tasks hold the same examples."""
  label = tasks[0]
  for other in tasks[1:]:
    if not np.array_equal(label.index, other.index):
      raise contract.UserError(
        f'{label.name} and {other.name} hold different examples, expected'
        f' the same. Delete the token cache {source.cache}.'
      )


def _mixture(
  parts: list[tokens.Tokens],
  defaults: list[float],
  rates: Mapping[str, float] | None,
) -> tuple[dict[str, list[tokens.Tokens]], list[float] | None]:
  chosen = defaults
  if rates is not None:
    names = sorted(part.name for part in parts)
    if sorted(rates) != names or not all(
      isinstance(rate, int | float) for rate in rates.values()
    ):
      raise contract.UserError(
        f'rates is {dict(rates)}, expected a number for each of'
        f' {", ".join(names)}. Correct MIXTURE_RATES.'
      )
    chosen = [float(rates[part.name]) for part in parts]
  if not all(0 < rate < float('inf') for rate in chosen):
    raise contract.UserError(
      f'rates are {chosen}, expected numbers above 0. Correct MIXTURE_RATES.'
    )
  if len(parts) == 1:  # not a mixture, so it has epochs
    return {contract.MIXTURE_VIEW: parts}, None
  return {contract.MIXTURE_VIEW: parts}, [r / sum(chosen) for r in chosen]


def own_name(name: str) -> contract.TaskName | None:
  """The parts of a name of this project, None for any other name."""
  try:
    return contract.parse_task_name(name)
  except contract.UserError:  # no error here: seqio may know the name
    return None


def tasks_of(name: contract.TaskName) -> tuple[str, ...]:
  """The tasks of a mixture of this project; of a task, itself."""
  if name.form != 'dsbs':
    return (str(name),)
  label = dataclasses.replace(name, form='label')
  rationale = contract.TaskName(name.benchmark, None, 'rationale')
  return str(label), str(rationale)
