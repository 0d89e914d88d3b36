# SPDX-License-Identifier: Apache-2.0
"""A served student is the next teacher: extract, prepare, train, evaluate."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from dsbs_jax.data import parsing, register
from dsbs_jax.data.source import joining
from dsbs_jax.experiments import demo
from dsbs_jax.inference import infer_file
from dsbs_jax.preparing import prepare as prepare_lib
from dsbs_jax.runs import run_folder
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.training import loop, train_config
from tests.serving import serving_process

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / 'examples' / 'parcels'
NUM_ROWS = {'train': 800, 'validation': 100, 'test': 400}
# Half as wide as `nano`.
SMALLER = ('EMB_DIM = 32', 'NUM_HEADS = 2', 'MLP_DIM = 64')
# A student may be wordier than the demo's lengths allow.
LENGTHS = {
  'label': {'inputs': 16, 'targets': 8},
  'rationale': {'inputs': 16, 'targets': 24},
}


def build(settings, engine, *bindings):
  return gin_config.build(
    settings,
    gin_files=[f'gin/{engine}.gin', 'gin/models/nano.gin'],
    gin_bindings=bindings,
    search_paths=[str(REPOSITORY)],
  )


def prepare(folder, **options):
  prepare_lib.prepare(
    prepare_lib.PrepareConfig(
      benchmark='parcels',
      source=str(SOURCE),
      data_dir=str(folder),
      **options,
    )
  )


def train(folder, *, data, vocabulary, task, more=()):
  run = build(
    train_config.TrainConfig,
    'train',
    f"MODEL_DIR = '{folder}'",
    f"DATA_DIR = '{data}'",
    f"VOCABULARY = '{vocabulary}'",
    f"MIXTURE_OR_TASK_NAME = '{task}'",
    *demo.RECIPE,
    f'TASK_FEATURE_LENGTHS = {LENGTHS}',
    'TRAIN_STEPS = 400',
    'EVAL_PERIOD = 400',
    *more,
  )
  assert loop.train(run) == 0


def infer(folder, run, vocabulary, split):
  """The answers of a student to the rows of a split, by id."""
  output = folder / f'{split}.answers'
  settings = build(
    infer_file.InferConfig,
    'infer',
    f"CHECKPOINT_PATH = '{run}'",
    "MIXTURE_OR_TASK_NAME = 'parcels_gt_dsbs'",
    f"VOCABULARY = '{vocabulary}'",
    f'VOCAB_SIZE = {demo.VOCABULARY_PIECES}',
    "BENCHMARK = 'parcels'",
    f"INPUT = '{SOURCE / f'{split}.jsonl'}'",
    f"OUTPUT = '{output}'",
    'RATIONALES = True',
    'MAX_DECODE_LEN = 4',
    'MAX_RATIONALE_LEN = 24',
  )
  assert infer_file.infer(settings) == 0
  lines = map(json.loads, output.read_text().splitlines())
  return {line['id']: line for line in lines}


def extract(folder, server, split):
  """Asks a server about a split, by the command; the lines that it wrote."""
  out = folder / f'{split}.jsonl'
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'rationales.extract', '--benchmark=parcels'),
      '--prompt=rationales/prompts/student.json',
      *(f'--source={SOURCE}', f'--split={split}', f'--out={out}'),
      f'--base_url={server.address()}/v1',
      '--model=parcels_gt_dsbs',
    ],
    cwd=REPOSITORY,
    env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in out.read_text().splitlines()]


def accuracy(run):
  """Test accuracy at the last step."""
  lines = (run / 'metrics.jsonl').read_text().splitlines()
  scores = [json.loads(line) for line in lines]
  return [e['accuracy'] for e in scores if e['split'] == 'test'][-1]


@pytest.mark.long
def test_a_smaller_student_learns_from_a_served_one(tmp_path, capsys):
  first, second = tmp_path / 'first', tmp_path / 'second'
  prepare(first / 'data', train_vocab=demo.VOCABULARY_PIECES)
  name = f'parcels.{demo.VOCABULARY_PIECES}.model'
  vocabulary = f'{first / "data" / "vocabularies" / name}:0'
  train(
    first / 'run',
    data=first / 'data',
    vocabulary=vocabulary,
    task='parcels_gt_dsbs',
  )

  completions = second / 'completions'
  completions.mkdir(parents=True)
  written = {}
  with serving_process.Process(
    *(tmp_path / 'log', 'models/nano'),
    CHECKPOINT_PATH=str(first / 'run'),
    MIXTURE_OR_TASK_NAME='parcels_gt_dsbs',
    VOCABULARY=vocabulary,
    VOCAB_SIZE=demo.VOCABULARY_PIECES,
    RATIONALES=True,
    INPUT_LENGTHS=(16,),
    MAX_DECODE_LEN=4,
    MAX_RATIONALE_LEN=24,
  ) as server:
    server.wait()
    for split in NUM_ROWS:
      written[split] = extract(completions, server, split)
    assert server.stop() == 0

  parse = register.benchmark('parcels').parse
  for split, lines in written.items():
    kinds = [line['kind'] for line in lines]
    assert kinds == ['header', *['completion'] * NUM_ROWS[split]]
    own = infer(first, first / 'run', vocabulary, split)
    said = {line['id']: line for line in lines[1:]}
    assert said.keys() == own.keys()  # every row, and each of them once
    for key, line in said.items():
      assert line['finish_reason'] == 'stop'
      found = parse(line['text'])
      assert found.label == own[key]['label']
      assert found.rationale == own[key]['rationale']
      # Where its teacher broke off, a student learned to say nothing.
      assert isinstance(found, parsing.Parsed) or not found.rationale

  prepare(second / 'data', completions=str(completions), vocabulary=vocabulary)
  prepared = run_folder.prepared('parcels', str(second / 'data'))
  counts = prepared.metadata['splits']['train']['counts']
  assert counts['rows'] == 800
  assert counts['statuses'][joining.PARSED] > 780, counts
  train(
    second / 'run',
    data=second / 'data',
    vocabulary=vocabulary,
    task='parcels_llm_dsbs',
    more=SMALLER,
  )
  taught, teacher = (accuracy(place / 'run') for place in (second, first))
  with capsys.disabled():
    print(f'\ntest accuracy: teacher {teacher:.2f}, smaller {taught:.2f}')
  # Guessing is 50; the smaller one sees 800 labels and reasons of a student.
  assert teacher > 80 and taught > 60
