# SPDX-License-Identifier: Apache-2.0
"""`make demo`: prepare, train, evaluate and report on the bundled benchmark.

Prepares examples/parcels, trains standard finetuning and step-by-step on
fractions of it with several seeds, compares their test accuracy, and shows
labels and rationales of a student. The benchmark is synthetic (see its
generate.py).
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import sys
import textwrap
import time
from collections.abc import Sequence

import rich.console
import rich.table
from absl import logging

from dsbs_jax.experiments import jobs, rationale_predictions, sweep_plan
from dsbs_jax.experiments import sweep as sweep_lib
from dsbs_jax.preparing import prepare
from dsbs_jax.reporting import report

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BENCHMARK = 'parcels'
# Methods with their column titles; the last one also writes rationales.
METHODS = {'gt_finetune': 'Finetuned', 'gt_dsbs': 'Step-by-step'}
STUDENT = 'gt_dsbs'
# Enough for the names, weights and few words of the benchmark.
VOCABULARY_PIECES = 256
MAX_RATIONALE_TOKENS = 16
NUM_EXAMPLES = 5

# Differs from the paper's recipe because the model starts from random weights
# and trains in seconds. Exact lengths halve the time of a step; without dropout
# the step compiles in half the time, and once for all seeds.
LENGTHS = {
  'label': {'inputs': 9, 'targets': 2},
  'rationale': {'inputs': 13, 'targets': 9},
}
RECIPE = (
  f'VOCAB_SIZE = {VOCABULARY_PIECES}',
  f'TASK_FEATURE_LENGTHS = {LENGTHS}',
  'LAYOUT = @layouts.Padded',
  'BATCH_SIZE = 32',
  'DROPOUT_RATE = 0.0',
  'LEARNING_RATE = 2e-3',
  'MAX_DECODE_LEN = 4',
  'EVAL_BATCH_SIZE = 200',
  'LOG_PERIOD = 100',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
  """Size of the demo: one run per method, fraction and seed."""

  out: str = str(REPOSITORY / 'runs' / 'demo')  # of the runs and the report
  cache: str = str(REPOSITORY / '.cache' / 'demo')  # of the prepared data
  fractions: Sequence[float] = (0.25, 0.5, 1.0)  # of 800 training examples
  seeds: Sequence[int] = (0, 1, 2)
  steps: int = 400

  @property
  def data_dir(self) -> pathlib.Path:
    """Above the prepared subsets."""
    return pathlib.Path(self.cache).absolute() / 'data'

  @property
  def whole(self) -> pathlib.Path:
    """The whole benchmark, prepared, where a sweep looks for it."""
    return self.data_dir / 'fraction-1'

  @property
  def vocabulary(self) -> str:
    """Spec of the vocabulary that is trained on it, without extra ids."""
    name = f'{BENCHMARK}.{VOCABULARY_PIECES}.model'
    return f'{self.whole / "vocabularies" / name}:0'


def run(demo: Demo) -> int:
  """Runs the demo, keeps finished runs, and returns the exit status."""
  started = time.monotonic()
  source = REPOSITORY / 'examples' / BENCHMARK
  title(
    f'1/4 Prepare: rows and completions of {source}.\n'
    'Both are synthetic: they stand in for a benchmark and for an LLM.'
  )
  prepare.prepare(
    prepare.PrepareConfig(
      benchmark=BENCHMARK,
      source=str(source),
      data_dir=str(demo.whole),
      train_vocab=VOCABULARY_PIECES,
    )
  )
  title(
    '2/4 Train: finetuning on labels, and step-by-step on labels and\n'
    'rationales, from random weights, on fractions of the training data.'
  )
  sweep = _sweep_of(demo, source)
  status = sweep_lib.run(sweep, in_process=True)
  if status:
    return status
  found = sweep_plan.plan(sweep).jobs
  title('3/4 Explain: the step-by-step students also write rationales.')
  rich.console.Console(markup=False, emoji=False).print(explain(demo, found))
  title('4/4 Compare: accuracy on 400 pairs that no run was trained on.')
  page = report.report([demo.out])
  say(_farewell(demo, found[-1], page, seconds=time.monotonic() - started))
  return 0


def _sweep_of(demo: Demo, source: pathlib.Path) -> sweep_plan.Sweep:
  """The runs of the demo, on the rows in a folder."""
  return sweep_plan.Sweep(
    benchmarks=(BENCHMARK,),
    methods=tuple(METHODS),
    models=('gin/models/nano.gin',),
    fractions=tuple(demo.fractions),
    seeds=tuple(demo.seeds),
    runs_dir=demo.out,
    data_dir=str(demo.data_dir),
    source=str(source),
    vocabulary=demo.vocabulary,
    gin_bindings=(
      *RECIPE,
      f'TRAIN_STEPS = {demo.steps}',
      f'EVAL_PERIOD = {-(-demo.steps // 2)}',
    ),
    search_paths=(str(REPOSITORY),),
  )


def explain(demo: Demo, found: Sequence[jobs.Job]) -> rich.table.Table:
  """Writes one student's rationales per fraction; returns the middle table."""
  tables = []
  for fraction in sorted(demo.fractions):
    pair = {
      METHODS[job.point.method]: job
      for job in found
      if (job.point.fraction, job.point.seed) == (fraction, min(demo.seeds))
    }
    written = rationale_predictions.write_rationales(
      pair[METHODS[STUDENT]].settings(), max_decode_len=MAX_RATIONALE_TOKENS
    )
    say(f'written: {written}')
    heading = f'First test examples, {100 * fraction:g} % of the training data'
    tables.append(
      rationale_predictions.side_by_side(
        pair, written, title=heading, num=NUM_EXAMPLES
      )
    )
  return tables[len(tables) // 2]


def _farewell(
  demo: Demo, job: jobs.Job, page: pathlib.Path, *, seconds: float
) -> str:
  """The closing text: where the results are, and what to try with a run."""
  python = jobs.quoted(os.path.relpath(sys.executable))
  folder = jobs.quoted(os.path.relpath(job.path))
  return f"""
Done in {seconds:.0f} s. The benchmark is synthetic and made so that rationales
help: the table shows that everything works, and says nothing about real data.

  {page}
      curves, table, all answers to every test example; open it in a browser
  {demo.out}
      runs: checkpoints, metrics, predictions, TensorBoard. Finished runs are
      kept; the demo trains only those that are missing
  {demo.whole}
      the prepared benchmark and its vocabulary

Next, for example, in this folder:

what training sees
  {python} -m dsbs_jax.show {folder}
evaluate one of the runs
  {python} -m dsbs_jax.eval {folder}
your own benchmark
  tasks/README.md"""


def title(text: str) -> None:
  """Announces a part of the demo."""
  say('\n' + textwrap.indent(text, '== '))


# Flushed, so that the order with stderr is kept.
say = functools.partial(print, flush=True)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  logging.set_verbosity(logging.ERROR)
  default = Demo()
  parser.add_argument('--out', default=default.out, help='Of the runs.')
  parser.add_argument('--cache', default=default.cache, help='Of the data.')
  parser.add_argument('--steps', type=int, default=default.steps)
  parser.add_argument(
    '--seeds', type=int, nargs='+', default=default.seeds, metavar='SEED'
  )
  parser.add_argument(
    '--fractions', type=float, nargs='+', default=default.fractions
  )
  return run(Demo(**vars(parser.parse_args())))


if __name__ == '__main__':
  sys.exit(main())
