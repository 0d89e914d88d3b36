# SPDX-License-Identifier: Apache-2.0
"""The real Gemma 3 270M: logits of 200 real rows are transformers' own.

Both read the same GGUF file, each with its own code: transformers by
`gguf_file=`, this project by `gguf_checkpoint`. Needs the file
(DSBS_GEMMA_GGUF), torch, transformers, accelerate, gguf and the paper's data;
some minutes of CPU time and 5 GB of memory:

  DSBS_GEMMA_GGUF=gemma3-270m.gguf python -m pytest -s -m long \
    tests/interop/test_gemma_real.py
"""

import json
import os
import pathlib

import jax
import numpy as np
import pytest

from dsbs_jax.core import network
from dsbs_jax.data import benchmark, register
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.interop import gguf_checkpoint, read_checkpoint
from dsbs_jax.interop.hf import hf_checkpoint

ROWS_OF = {'svamp': 100, 'cqa': 100}
BATCH = 10


@pytest.fixture(scope='module')
def file():
  path = pathlib.Path(os.environ.get('DSBS_GEMMA_GGUF', ''))
  if not path.is_file():
    pytest.skip('DSBS_GEMMA_GGUF names no file with the real Gemma 3 270M')
  for name in ('torch', 'transformers', 'accelerate', 'gguf'):
    pytest.importorskip(name, reason=f'{name} is not installed')
  return path


def texts(shared_dir):
  """Inputs and labels of the first test rows, as the tasks have them."""
  found = []
  for name, number in ROWS_OF.items():
    register.load_module(f'tasks.{name}')
    known = benchmark.get(name)
    place = shared_dir / 'data' / 'datasets' / name / f'{name}_test.json'
    content = place.read_text().strip()
    rows = (
      json.loads(content)
      if content[0] == '['
      else [json.loads(line) for line in content.splitlines()]
    )
    found += [
      ('[label] ' + known.render(row), known.label(row))
      for row in rows[:number]
    ]
  return found


def logits_of_ours(folder, inputs, targets):
  """Yields (row, the logits of its targets [T, V]), a batch at a time."""
  config = hf_checkpoint.config_from_hf(folder)
  params = jax.tree.map(
    jax.numpy.asarray, read_checkpoint.load_params(str(folder), config)
  )
  apply = jax.jit(network.apply, static_argnums=1)
  order = sorted(range(len(inputs)), key=lambda row: len(inputs[row]))
  longest = max(map(len, targets))
  for start in range(0, len(order), BATCH):
    chosen = order[start : start + BATCH]
    width = -(-max(len(inputs[row]) for row in chosen) // 32) * 32
    sources = np.zeros((BATCH, width), np.int32)
    outputs = np.zeros((BATCH, longest), np.int32)
    for place, row in enumerate(chosen):
      sources[place, : len(inputs[row])] = inputs[row]
      outputs[place, : len(targets[row])] = targets[row]
    rows = {
      'encoder_input_tokens': sources,
      'decoder_input_tokens': np.pad(outputs[:, :-1], ((0, 0), (1, 0))),
      'decoder_target_tokens': outputs,
    }
    logits = np.asarray(apply(params, config, rows))
    for place, row in enumerate(chosen):
      yield row, logits[place, : len(targets[row])]


def opened_by_transformers(file):
  import torch
  import transformers

  return transformers.AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype=torch.float32
  ).eval()


def logits_of_theirs(model, source, target):
  """The logits of one row's targets, [T, V]."""
  import torch

  ids = torch.tensor([[*source, *target]])
  with torch.no_grad():
    logits = model(ids, logits_to_keep=len(target) + 1).logits
  return logits[0, :-1].numpy()


@pytest.mark.long
def test_logits_of_200_real_rows_are_those_of_transformers(
  file, shared_dir, tmp_path
):
  model = opened_by_transformers(file)
  folder = tmp_path / 'converted'
  gguf_checkpoint.to_hugging_face(file, folder)
  vocabulary = vocabularies.load(str(folder))
  pairs = texts(shared_dir)
  inputs = vocabulary.encode_inputs([text for text, _ in pairs])
  targets = [[*vocabulary.encode(label), 1] for _, label in pairs]
  worst, relative, same, rows, places = 0.0, 0.0, 0, 0, 0
  for row, mine in logits_of_ours(folder, inputs, targets):
    theirs = logits_of_theirs(model, inputs[row], targets[row])
    difference = mine - theirs
    worst = max(worst, np.abs(difference).max())
    relative = max(
      relative, np.linalg.norm(difference) / np.linalg.norm(theirs)
    )
    same += np.sum(mine.argmax(-1) == theirs.argmax(-1))
    rows, places = rows + 1, places + len(mine)
    if rows % 20 == 0:
      print(
        f'{rows} rows, {places} positions: largest difference {worst:.2e},'
        f' relative per row {relative:.2e} at most; {same} argmaxes equal',
        flush=True,
      )
  assert rows == sum(ROWS_OF.values())
  assert worst < 1e-3 and relative < 2e-5
  assert same == places
