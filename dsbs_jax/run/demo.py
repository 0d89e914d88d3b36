# SPDX-License-Identifier: Apache-2.0
"""`make demo`: the main job, start to end, on the bundled benchmark.

Prepares examples/parcels, trains standard finetuning and step-by-step on
shares of it with several seeds, compares them on test, and shows what a
student says and why. The benchmark is synthetic (see its generate.py).
"""

import argparse
import dataclasses
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence

import rich.console
import rich.table

from dsbs_jax.run import (
  config,
  evaluation,
  explaining,
  folders,
  jobs,
  loop,
  planning,
  preparation,
  reporting,
  scoring,
  sweeping,
)
from dsbs_jax.run import examples as examples_lib

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BENCHMARK = 'parcels'
STUDENT = 'gt_dsbs'
# Names, weights and a few words: everything in the benchmark's texts fits.
VOCABULARY_PIECES = 256
MAX_RATIONALE_TOKENS = 16
NUM_EXAMPLES = 5
TEST_PAIRS = '400 pairs'

# What differs from the paper's recipe: the model learns from nothing, in
# seconds. There is no dropout because its random bits would be a third of the
# time.
RECIPE = (
  'VOCAB_SIZE = 256',
  'DROPOUT_RATE = 0.0',
  'LAYOUT = @packing.Padded',
  'BATCH_SIZE = 32',
  'LEARNING_RATE = 2e-3',
  'MAX_DECODE_LEN = 4',
  'EVAL_BATCH_SIZE = 200',
  'LOG_PERIOD = 100',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
  """How much of it to do.

  Attributes:
    out: folder of the runs and the report.
    cache: folder of the prepared data.
    fractions: shares of the 800 training examples.
    seeds: runs per method and share.
    steps: training steps of each run.
  """

  out: str = str(REPOSITORY / 'runs' / 'demo')
  cache: str = str(REPOSITORY / '.cache' / 'demo')
  fractions: Sequence[float] = (0.25, 0.5, 1.0)
  seeds: Sequence[int] = (0, 1, 2)
  steps: int = 300

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
  """Runs the demo; what an earlier call has finished is kept.

  Args:
    demo: how much of it to do.

  Returns:
    The exit status.
  """
  started = time.monotonic()
  source = REPOSITORY / 'examples' / BENCHMARK
  title(
    f'1/4 Prepare: rows and completions of {source}.\n'
    'A program made both. They stand in for a benchmark and an LLM.'
  )
  preparation.prepare(
    preparation.Preparation(
      benchmark=BENCHMARK,
      source=str(source),
      data_dir=str(demo.whole),
      train_vocab=VOCABULARY_PIECES,
    )
  )
  title(
    '2/4 Train: finetuning on labels, and step-by-step on labels and\n'
    'rationales, from random weights, on shares of the training data.'
  )
  sweep = sweep_of(demo, source)
  status = sweeping.run(sweep, in_process=True)
  if status:
    return status
  title('3/4 Explain: step-by-step students are asked for rationales, too.')
  students = [
    job
    for job in planning.plan(sweep).jobs
    if job.point.method == STUDENT and job.point.seed == min(demo.seeds)
  ]
  for job in students:
    explain(job)
  title(f'4/4 Compare: accuracy on {TEST_PAIRS} that nobody trained on.')
  page = reporting.report([demo.out])
  say(farewell(demo, sweep, page, seconds=time.monotonic() - started))
  return 0


def sweep_of(demo: Demo, source: pathlib.Path) -> planning.Sweep:
  """The runs of the demo."""
  return planning.Sweep(
    benchmarks=(BENCHMARK,),
    methods=('gt_finetune', STUDENT),
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


def explain(job: jobs.Job) -> None:
  """Writes a student's rationales, and shows the first beside its labels."""
  run = config.build(
    loop.Training,
    gin_files=job.gin_files,
    gin_bindings=job.gin_bindings,
    search_paths=job.search_paths,
  )
  written = explaining.write_rationales(
    run, max_decode_len=MAX_RATIONALE_TOKENS
  )
  _, step = scoring.find_checkpoint(run.model_dir, 'best')
  task = evaluation.evaluated_task(run.mixture_or_task_name)
  labels = examples_lib.read_predictions(
    written.with_name(f'{task}-{folders.TEST}-{step:06}.jsonl')
  )
  rationales = examples_lib.read_predictions(written)
  table = rich.table.Table(title=f'{job.name}: test, step {step:,}')
  for name in ('input', 'gold', 'its label', '', 'its rationale', ''):
    table.add_column(name)
  for index in list(labels)[:NUM_EXAMPLES]:
    label, rationale = labels[index], rationales[index]
    table.add_row(
      label['input'],
      label['target'],
      label['prediction'],
      mark(label),
      rationale['prediction'],
      mark(rationale),
    )
  rich.console.Console().print(table)


def mark(line: dict[str, str]) -> str:
  """Whether a prediction is what the data has."""
  return 'right' if line['prediction'] == line['target'] else 'wrong'


def farewell(
  demo: Demo, sweep: planning.Sweep, page: pathlib.Path, *, seconds: float
) -> str:
  """Where everything lies, and what to try next."""
  job = planning.plan(sweep).jobs[-1]
  model = [f'--gin_file={REPOSITORY / file}' for file in job.gin_files[1:]]
  flags = {
    'VOCAB_SIZE': 256,
    'VOCABULARY': demo.vocabulary,
    'DATA_DIR': str(demo.whole),
    'MIXTURE_OR_TASK_NAME': job.point.task,
    'CHECKPOINT_PATH': str(job.path),
  }
  evaluate = [
    *('python', '-m', 'dsbs_jax.eval', f'--gin_file={REPOSITORY}/gin/eval.gin'),
    *model,
    *(f'--gin.{name}={value!r}' for name, value in flags.items()),
  ]
  show = [
    *('python', '-m', 'dsbs_jax.show', f'--task={job.point.task}'),
    *(f'--data_dir={demo.whole}', f'--vocabulary={demo.vocabulary}'),
  ]
  return f"""
Done in {seconds:.0f} s. The benchmark is synthetic: the table shows that the
method works here, and nothing about real data.

  page with curves and every example   {page}
  runs: checkpoints, metrics           {demo.out}
  prepared data                        {demo.data_dir}

Next, for example:
  what training sees    {shlex.join(show)}
  evaluate a run        {shlex.join(evaluate)}
  your own benchmark    tasks/README.md"""


def title(text: str) -> None:
  """Announces a part of the demo."""
  say('\n' + '\n'.join(f'== {line}' for line in text.splitlines()))


def say(text: str) -> None:
  """Prints at once, in order with what goes to standard error."""
  print(text, flush=True)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
