# SPDX-License-Identifier: Apache-2.0
"""How long a sweep has to go, from the runs that it has done."""

from collections.abc import Sequence

from dsbs_jax.experiments import jobs


class Pace:
  """Estimates what is left from what was done.

  The time per step is measured per model; a model without a measurement takes
  the mean of the others. Start-up, compilation and evaluation are in it.
  """

  def __init__(self, plan: Sequence[jobs.Job]):
    self._left = {job.name: job.train_steps - job.step for job in plan}
    self._total = sum(self._left.values())
    self._models = {job.name: job.point.model for job in plan}
    self._done = {}

  def done(self, job: jobs.Job, *, seconds: float, steps: int) -> None:
    """Takes in a run that ended, well or not, after so many steps."""
    spent, walked = self._done.get(job.point.model, (0.0, 0))
    self._done[job.point.model] = (spent + seconds, walked + steps)
    self._left[job.name] = 0

  def share(self, job: jobs.Job | None = None, steps: int = 0) -> float:
    """Share of all steps that are done, `steps` of them by a running job."""
    left = sum(self._left.values()) - (steps if job else 0)
    return 1.0 if self._total == 0 else 1.0 - max(0, left) / self._total

  def eta(
    self, job: jobs.Job | None = None, *, seconds: float = 0.0, steps: int = 0
  ) -> float | None:
    """Seconds until the end, None while nothing was measured.

    Args:
      job: the run under way, if any.
      seconds: how long it has run.
      steps: how many steps it has done in that time.
    """
    done = dict(self._done)
    if job is not None and steps:
      spent, walked = done.get(job.point.model, (0.0, 0))
      done[job.point.model] = (spent + seconds, walked + steps)
    walked = sum(steps for _, steps in done.values())
    if not walked:
      return None
    mean = sum(spent for spent, _ in done.values()) / walked
    rates = {model: a / b for model, (a, b) in done.items() if b}
    left = dict(self._left)
    if job is not None:
      left[job.name] = max(0, left[job.name] - steps)
    return sum(
      count * rates.get(self._models[name], mean)
      for name, count in left.items()
    )
