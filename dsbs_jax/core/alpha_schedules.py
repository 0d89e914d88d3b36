# SPDX-License-Identifier: Apache-2.0
"""Alpha as a function of the step: labels first, rationales first, or a list.

  alpha(k) = alpha of the points, linear between neighbours       k from 0

before the first point alpha is that point's, behind the last one that one's. Of
two points at one step the later one holds from that step on: a jump. With N
steps in the run and A the alpha of the objective, the named schedules are

  'tscl'    1 for N / 3 steps, then A, then 0 from step 2 N / 3 on
  'linear'  1 - k / N

`tscl` is task-structured curriculum learning: labels alone, both tasks,
rationales alone. Its phases are thirds here unless a list of points says
otherwise: ((0, 1.0), (500, 1.0), (500, 0.5), (900, 0.5), (900, 0.0)).

Where alpha is 1 or 0, the other task is computed all the same and weighs 0: one
program serves the whole run.

Source: Ezgi and Onan 2026, Task-Structured Curriculum Learning for Multi-Task
Distillation, CMC 86(3), 70, doi:10.32604/cmc.2025.071301, for `tscl`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dsbs_jax import contract

NAMES = ('tscl', 'linear')

Points = tuple[tuple[int, float], ...]
Schedule = str | Points | None


def checked(schedule: Any) -> Schedule:
  """A schedule as a hashable value: None, a name, or points.

  Args:
    schedule: what a user gave: None, a name of `NAMES`, or (step, alpha) pairs,
      steps counted from 0 and in order.

  Raises:
    UserError: it is none of these.
  """
  if schedule is None or schedule in NAMES:
    return schedule
  try:
    points = tuple((step, float(alpha)) for step, alpha in schedule)
  except (TypeError, ValueError):
    points = ()
  steps = [step for step, _ in points]
  if (
    not points
    or isinstance(schedule, str)
    or not all(type(step) is int and step >= 0 for step in steps)
    or steps != sorted(steps)
    or not all(0.0 <= alpha <= 1.0 for _, alpha in points)
  ):
    raise contract.UserError(
      f'alpha_schedule is {schedule!r}, expected None,'
      f' {" or ".join(map(repr, NAMES))}, or pairs of a step from 0 on and an'
      ' alpha in [0, 1], in order of the steps, such as ((0, 1.0), (500, 1.0),'
      ' (500, 0.5)). Correct ALPHA_SCHEDULE.'
    )
  return points


def make(
  schedule: Schedule, *, alpha: float, total_steps: int
) -> Callable[[jax.Array], jax.Array] | None:
  """The function of a schedule; None where alpha does not vary.

  Args:
    schedule: as `checked` returns it.
    alpha: of the objective: the middle phase of `tscl`.
    total_steps: N, steps of the run; a list of points does not need it.

  Returns:
    step, an int32 scalar from 0 -> alpha, a float32 scalar.

  Raises:
    UserError: a named schedule has no run to divide.
  """
  if schedule is None:
    return None
  if isinstance(schedule, str):
    if total_steps < 1:
      raise contract.UserError(
        f'alpha_schedule is {schedule!r} in a run of {total_steps} steps,'
        ' expected 1 or more, or pairs of a step and an alpha.'
      )
    schedule = _named(schedule, alpha, total_steps)
  last_step, last_alpha = schedule[-1]
  # One more point, so that a jump at the last one is between two points.
  steps, alphas = zip(*schedule, (last_step + 1, last_alpha), strict=True)

  def alpha_at(step):
    step = jnp.asarray(step, jnp.float32)
    return jnp.interp(
      step, *(jnp.array(x, jnp.float32) for x in (steps, alphas))
    )

  return alpha_at


def _named(name: str, alpha: float, total_steps: int) -> Points:
  if name == 'linear':
    return (0, 1.0), (total_steps, 0.0)
  first, second = round(total_steps / 3), round(2 * total_steps / 3)
  return (
    (0, 1.0),
    (first, 1.0),
    (first, alpha),
    (second, alpha),
    (second, 0.0),
  )
