# SPDX-License-Identifier: Apache-2.0
"""How far a sweep is and how long it still takes, from its finished runs."""

from collections.abc import Sequence

from dsbs_jax.experiments import jobs


class SweepProgress:
  """Counts steps, and predicts the time of those that are left.

  Each model has its own time per step, which includes start-up, compilation
  and evaluation. A model that was not measured yet gets the mean of the rest.
  """

  def __init__(self, runs: Sequence[jobs.Job]):
    self._steps_left = {run.name: run.train_steps - run.step for run in runs}
    self._total_steps = sum(self._steps_left.values())
    self._model_of = {run.name: run.point.model for run in runs}
    self._measured = {}  # model -> (seconds, steps)
    self._first = {}  # run under way -> (seconds, steps) of its first line

  def record(self, job: jobs.Job, *, seconds: float, steps: int) -> None:
    """Notes that a run ended, well or not, after so many steps of its own."""
    self._measured = self._with(job, seconds, steps)
    self._steps_left[job.name] = 0

  def estimate(
    self, job: jobs.Job | None = None, *, seconds: float = 0.0, steps: int = 0
  ) -> tuple[float, float | None]:
    """How far the sweep is.

    Args:
      job: the run under way, if any.
      seconds: how long it has run.
      steps: how many steps it has done in that time.

    Returns:
      The share of all steps that are done, in [0, 1], and the seconds until
      the end, None while nothing was measured.
    """
    measured, left = self._measured, dict(self._steps_left)
    if job is not None:
      left[job.name] = max(0, left[job.name] - steps)
      if steps and job.point.model in measured:
        measured = self._with(job, seconds, steps)
      elif steps:
        # Until its first line it started and compiled, which says nothing.
        first = self._first.setdefault(job.name, (seconds, steps))
        measured = self._with(job, seconds - first[0], steps - first[1])
    num_left = sum(left.values())
    done = 1 - num_left / self._total_steps if self._total_steps else 1.0
    all_steps = sum(steps for _, steps in measured.values())
    if not all_steps:
      return done, None
    mean = sum(seconds for seconds, _ in measured.values()) / all_steps
    rates = {model: a / b for model, (a, b) in measured.items() if b}
    return done, sum(
      steps * rates.get(self._model_of[name], mean)
      for name, steps in left.items()
    )

  def _with(self, job: jobs.Job, seconds: float, steps: int):
    before = self._measured.get(job.point.model, (0.0, 0))
    after = (before[0] + seconds, before[1] + steps)
    return self._measured | {job.point.model: after}
