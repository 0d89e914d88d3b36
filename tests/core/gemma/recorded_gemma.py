# SPDX-License-Identifier: Apache-2.0
"""The recorded Gemma 3 and T5Gemma 2 of transformers; rows as row groups."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest

from dsbs_jax.core import network
from dsbs_jax.interop.hf import hf_checkpoint
from tests import models

_RECORDINGS = pathlib.Path(__file__).parents[2] / 'recordings'


_load = functools.cache(hf_checkpoint.load_params)


class Recording:
  """What one of them computed; both were given the same inputs and targets."""

  def __init__(self, name):
    self.folder = _RECORDINGS / name
    self.config = hf_checkpoint.config_from_hf(self.folder)
    self.forward = dict(np.load(self.folder / 'forward.npz'))
    self.trajectory = dict(np.load(self.folder / 'trajectory.npz'))

  def params(self, scan_layers=False):
    config = dataclasses.replace(self.config, scan_layers=scan_layers)
    return _load(self.folder, config)


GEMMA3, T5GEMMA2 = Recording('gemma3'), Recording('t5gemma2')
FOLDER, CONFIG, FORWARD = GEMMA3.folder, GEMMA3.config, GEMMA3.forward
params = GEMMA3.params
both = pytest.mark.parametrize(
  'recorded', [GEMMA3, T5GEMMA2], ids=['gemma3', 't5gemma2']
)


def padded(inputs, targets, term=1):
  """One example per row."""
  targets = targets.astype(np.int32)
  real = targets > 0
  return {
    'encoder_input_tokens': inputs.astype(np.int32),
    'decoder_input_tokens': np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    'decoder_target_tokens': targets,
    'decoder_loss_weights': real.astype(np.float32),
    'decoder_task_ids': real * np.int32(term),
  }


def packed(inputs, targets, term=1):
  """All examples in one row, and one empty place at its end."""
  sides = {}
  for side, examples in (('encoder', inputs), ('decoder', targets)):
    parts = [row[row > 0] for row in examples]
    segments = [np.full(len(p), n) for n, p in enumerate(parts, 1)]
    positions = [np.arange(len(p)) for p in parts]
    sides[side] = [
      np.pad(np.concatenate(column), (0, 1))[None].astype(np.int32)
      for column in (parts, segments, positions)
    ]
  tokens, segments, positions = sides['decoder']
  shifted = np.pad(tokens[:, :-1], ((0, 0), (1, 0)))
  return {
    'encoder_input_tokens': sides['encoder'][0],
    'encoder_segment_ids': sides['encoder'][1],
    'encoder_positions': sides['encoder'][2],
    'decoder_input_tokens': np.where(positions == 0, 0, shifted),
    'decoder_target_tokens': tokens,
    'decoder_segment_ids': segments,
    'decoder_positions': positions,
    'decoder_loss_weights': (tokens > 0).astype(np.float32),
    'decoder_task_ids': (tokens > 0) * np.int32(term),
  }


def with_token_index(rows, spare=2):
  """The places of its real tokens, in one cell."""
  index = {}
  for side, name in (('encoder', 'input'), ('decoder', 'target')):
    real = rows[f'{side}_{name}_tokens'].reshape(-1) > 0
    places = np.pad(np.flatnonzero(real), (0, spare), constant_values=real.size)
    index[f'{side}_token_index'] = places[None].astype(np.int32)
  return rows | index


def apply(config, params, rows):
  """The logits, [B, T, V]."""
  function = models.jit(lambda p, r: network.apply(p, config, r))
  return np.asarray(function(params, rows))


def as_jax(tree):
  return jax.tree.map(jax.numpy.asarray, tree)
