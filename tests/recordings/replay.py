# SPDX-License-Identifier: Apache-2.0
"""Replays the recorded 100 steps of the original method with our train step.

For the tests, and for `bench.parity` on an accelerator.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import objective, optimizer, platform, steps
from dsbs_jax.interop.hf import hf_checkpoint
from tests.recordings import hf_folders

STEPS = 100
TERMS = ('pred_loss', 'expl_loss', 'total_loss', 'grad_norm', 'lr')
# {recording: {view: (source, target)}}: rows of padded batches, then of batches
# that are packed into four rows.
PADDED = {
  'parcels': {'label': (32, 4), 'rationale': (32, 12)},
  'cqa': {'label': (128, 16), 'rationale': (128, 80)},
}
PACKED = {
  'parcels': {'label': (48, 8), 'rationale': (48, 24)},
  'cqa': {'label': (192, 16), 'rationale': (192, 96)},
}
VIEWS = {
  'label': ('pred', contract.LABEL_ID),
  'rationale': ('expl', contract.RATIONALE_ID),
}


def widen(tokens, length, filler):
  width = length - tokens.shape[-1]
  return np.pad(
    tokens.astype(np.int32),
    ((0, 0), (0, 0), (0, width)),
    constant_values=filler,
  )


def padded_rows(recorded, side, *, task_id, source_length, target_length):
  """All steps' row groups of one task, [steps, rows, length]."""
  inputs = recorded[f'{side}_input_ids'] * recorded[f'{side}_attention_mask']
  inputs = widen(inputs, source_length, contract.PAD_ID)
  labels = widen(recorded[f'{side}_labels'], target_length, -100)
  real = labels != -100
  targets = np.where(real, labels, contract.PAD_ID)
  shifted = np.pad(targets, ((0, 0), (0, 0), (1, 0)))[..., :-1]
  return {
    'encoder_input_tokens': inputs,
    'decoder_input_tokens': shifted,
    'decoder_target_tokens': targets,
    'decoder_loss_weights': real.astype(np.float32),
    'decoder_task_ids': np.where(real, task_id, 0).astype(np.int32),
  }


def pack_rows(rows, num_rows, source_length, target_length):
  """First fit of one step's padded examples into a fixed number of rows."""
  packed = {
    name: np.zeros(
      (num_rows, source_length if 'encoder' in name else target_length),
      rows[name].dtype if name in rows else np.int32,
    )
    for name in [
      *rows,
      *(f'{side}_segment_ids' for side in ('encoder', 'decoder')),
      *(f'{side}_positions' for side in ('encoder', 'decoder')),
    ]
  }
  used = np.zeros((num_rows, 2), int)
  segments = np.zeros(num_rows, int)
  for example in range(len(rows['encoder_input_tokens'])):
    size = np.array(
      [
        np.count_nonzero(rows['encoder_input_tokens'][example]),
        np.count_nonzero(rows['decoder_loss_weights'][example]),
      ]
    )
    fits = np.all(used + size <= (source_length, target_length), axis=1)
    row = int(np.argmax(fits))
    assert fits[row], 'the example fits in no row'
    segments[row] += 1
    for name, array in packed.items():
      side = int('decoder' in name)
      span = slice(used[row, side], used[row, side] + size[side])
      if name.endswith('segment_ids'):
        array[row, span] = segments[row]
      elif name.endswith('positions'):
        array[row, span] = np.arange(size[side])
      else:
        array[row, span] = rows[name][example, : size[side]]
    used[row] += size
  return packed


def packed_steps(rows, **sizes):
  every = [
    pack_rows({k: v[step] for k, v in rows.items()}, **sizes)
    for step in range(STEPS)
  ]
  return {name: np.stack([one[name] for one in every]) for name in every[0]}


def token_index_of(rows):
  """Where the tokens of all steps' packed rows are, [steps, 1, slots]."""
  found = {}
  for side in ('encoder', 'decoder'):
    real = rows[f'{side}_segment_ids'].reshape(STEPS, -1) > 0
    slots = real.sum(axis=1).max()
    places = np.full((STEPS, 1, slots), real.shape[1], np.int32)
    for step, own in enumerate(real):
      places[step, 0, : own.sum()] = np.flatnonzero(own)
    found[f'{side}_token_index'] = places
  return found


def every_layout(name, recorded):
  """{layout: {view: rows of all steps}} of a recording's batches."""
  padded, packed = {}, {}
  for view, (side, task_id) in VIEWS.items():
    source_length, target_length = PADDED[name][view]
    padded[view] = padded_rows(
      recorded,
      side,
      task_id=task_id,
      source_length=source_length,
      target_length=target_length,
    )
    source_length, target_length = PACKED[name][view]
    packed[view] = packed_steps(
      padded[view],
      num_rows=4,
      source_length=source_length,
      target_length=target_length,
    )
  unpadded = {
    view: rows | token_index_of(rows) for view, rows in packed.items()
  }
  return {'padded': padded, 'packed': packed, 'unpadded': unpadded}


@dataclasses.dataclass(frozen=True)
class Recording:
  """100 steps of the original method; folders are those of transformers."""

  start: pathlib.Path
  finals: dict[float, pathlib.Path]  # by peak learning rate
  terms: dict[float, dict]  # of torch's AdamW
  old_adamw: tuple[float, dict]  # of transformers' own
  batches: dict
  jit: Callable  # what costs less in all, compiling or running slower

  @functools.cached_property
  def config(self):
    return hf_checkpoint.config_from_hf(self.start)

  def params(self, folder):
    return hf_checkpoint.load_params(folder, self.config)


def terms_of(recorded, pattern='{}'):
  return {name: recorded[pattern.format(name)] for name in TERMS}


def read_parcels(new_folder, jit):
  """The bundled recording: tests/recordings/README.md."""
  trained = hf_folders.BUNDLED / 't5_1_1'
  recorded = np.load(trained / 'trajectory.npz')
  return Recording(
    start=hf_folders.with_start_weights(new_folder(), trained=trained),
    finals={2e-3: trained},
    terms={2e-3: terms_of(recorded)},
    old_adamw=(2e-3, terms_of(recorded, '{}_adamw_hf')),
    batches=every_layout(
      'parcels', np.load(hf_folders.BUNDLED / 'batches.npz')
    ),
    jit=jit,
  )


def read_cqa(new_folder, folder):
  """Real rows, a larger model and two learning rates."""
  recorded = dict(np.load(folder / 'loss_trajectory_cqa.npz'))
  rates = {'lr5e-5': 5e-5, 'lr1e-3': 1e-3}
  recorded['lr1e-3__lr_hf424_adamw_hf'] = recorded['lr1e-3__lr']
  return Recording(
    start=folder / 'hf_t5_tiny',
    finals={
      rate: hf_folders.with_weights(
        new_folder(),
        config=folder / 'hf_t5_tiny' / 'config.json',
        weights=folder / 'final_weights' / f'cqa_{run}.safetensors',
      )
      for run, rate in rates.items()
    },
    terms={
      rate: terms_of(recorded, f'{run}__{{}}') for run, rate in rates.items()
    },
    old_adamw=(1e-3, terms_of(recorded, 'lr1e-3__{}_hf424_adamw_hf')),
    batches=every_layout('cqa', recorded),
    jit=jax.jit,
  )


@functools.cache
def runner(jit, config, make_optimizer, chunk_tokens, join_views=False):
  """100 steps in one program; the peak rate is an argument of it."""

  @jit
  def run(params, batches, rate):
    transformation = make_optimizer(
      optimizer.linear_decay(rate, total_steps=STEPS), clip_norm=1.0
    )
    step = steps.make_train_step(
      config,
      objective.Distillation(alpha=0.5),
      transformation,
      run_key=jax.random.key(0),
      chunk_tokens=chunk_tokens,
      join_views=join_views,
    )
    with platform.traced_for(jax.default_backend()):
      return jax.lax.scan(
        step, steps.state_from_params(params, transformation), batches
      )

  return run


def deviation(ours, recorded):
  return float(np.max(np.abs(np.asarray(ours) / recorded - 1.0)))


def our_terms(metrics):
  found = {
    'pred_loss': metrics['label/loss_sum'] / metrics['label/tokens'],
    'expl_loss': metrics['rationale/loss_sum'] / metrics['rationale/tokens'],
    'total_loss': metrics['loss'],
    'grad_norm': metrics['grad_norm'],
    'lr': metrics['learning_rate'],
  }
  assert set(found) == set(TERMS)
  assert all(values.shape == (STEPS,) for values in found.values())
  return found
