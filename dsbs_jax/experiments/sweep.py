# SPDX-License-Identifier: Apache-2.0
"""The sweep command: prints the plan, then runs its commands or prints them."""

import collections
import dataclasses
import sys

from dsbs_jax.experiments import executor, jobs, launchers, sweep_plan

STAGES = ('all', 'prepare', 'train')


def run(
  sweep: sweep_plan.Sweep,
  *,
  stage: str = 'all',
  print_only: bool = False,
  in_process: bool = False,
) -> int:
  """Plans a sweep and runs what is not finished; see `executor.execute`.

  Args:
    sweep: what is asked for.
    stage: 'prepare' for the data only, 'train' for the runs only, or 'all'.
    print_only: write the commands, one per line, and run nothing.
    in_process: run in this process, not in one per run.
  """
  plan = sweep_plan.plan(sweep)
  print(describe(plan), file=sys.stderr)
  plan = dataclasses.replace(
    plan, prepares=stage != 'train', trains=stage != 'prepare'
  )
  if print_only:
    for command in plan.commands():
      print(jobs.shell_line(command))
    return 0
  launcher = launchers.subprocess_launcher
  if in_process:
    launcher = launchers.in_process_launcher
  status = executor.execute(plan, launcher=launcher)
  if stage != 'prepare':
    for command in untouched_commands(plan, sweep.runs_dir):
      line = ' '.join(map(jobs.quoted, command))
      print(f'untouched student, for the report: {line}')
    print(f'report: python -m dsbs_jax.report {sweep.runs_dir}')
  return status


def untouched_commands(plan: jobs.SweepPlan, runs_dir: str) -> list[list[str]]:
  """The commands that evaluate what pretrained runs start from, untouched.

  Scores go below the folder of the runs, where the report finds them.
  """
  found = {}
  for job in plan.jobs:
    start = job.macros.get('INITIAL_CHECKPOINT_PATH')
    if not isinstance(start, str):
      continue
    name = f'untouched-{job.point.benchmark}-{job.point.model}'
    flags = {
      'task': f'{job.point.benchmark}_gt_label',
      'data_dir': job.subset.data_dir,
      'out': f'{runs_dir.rstrip("/")}/{name}',
    }
    for macro in ('VOCABULARY', 'PREFIXES', 'MODULE', 'MAX_DECODE_LEN'):
      value = job.macros.get(macro)
      if value is not None and not str(value).startswith(('@', '%')):
        flags[macro.lower()] = value
    given = [f'--{flag}={value}' for flag, value in flags.items()]
    found.setdefault(name, ['dsbs', 'eval', start, *given])
  return list(found.values())


def describe(plan: jobs.SweepPlan) -> str:
  """The plan as text: one line per run with its state, then the totals."""
  lines = []
  for job in plan.jobs:
    state = job.state
    if state == jobs.RESUME:
      state = f'resumes at step {job.step:,}'
    lines.append(f'  {job.name}  {job.train_steps:,} steps  {state}')
  states = collections.Counter(job.state for job in plan.jobs)
  steps = sum(job.train_steps - job.step for job in plan.open_jobs)
  lines.append(
    f'plan: {len(plan.jobs):,} runs, {states[jobs.FINISHED]:,} finished,'
    f' {states[jobs.RESUME]:,} to resume, {states[jobs.NEW]:,} new:'
    f' {steps:,} steps; {len(plan.open_subsets):,} of {len(plan.subsets):,}'
    ' subsets of data to prepare'
  )
  return '\n'.join(lines)
