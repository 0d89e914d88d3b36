# SPDX-License-Identifier: Apache-2.0
"""python -m bench.parity: how near this device comes to what torch recorded.

Replays the bundled recording (tests/recordings): 100 training steps, forward
passes and greedy outputs, in float32 and in bfloat16. Prints one JSON object:
by dtype the worst relative difference of the losses and of the gradient norm,
the worst absolute one of weights and of logits, and how many outputs are equal.
"""

import dataclasses
import functools
import json
import pathlib
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bench import attentions
from dsbs_jax.core import decoding, network, optimizer
from dsbs_jax.interop.hf import hf_checkpoint
from tests.recordings import hf_folders, replay


def main() -> None:
  print(json.dumps(measure(), indent=1))


def measure() -> dict[str, dict[str, float]]:
  """The figures, by dtype and way: JSON values."""
  jax.config.update('jax_default_matmul_precision', None)
  found = {}
  with tempfile.TemporaryDirectory() as root:
    recording = replay.read_parcels(
      lambda: pathlib.Path(tempfile.mkdtemp(dir=root)), jax.jit
    )
    for dtype in ('float32', 'bfloat16'):
      for join_views in (False, True):
        name = f'{dtype}, views {"joined" if join_views else "apart"}'
        found[name] = _trajectory(recording, dtype, join_views)
  for dtype in ('float32', 'bfloat16'):
    for name in ('t5_1_1', 't5_1_0'):
      found[f'{dtype}, {name}'] = _outputs(hf_folders.BUNDLED / name, dtype)
  for name, form in attentions.WAYS.items():
    if name == 'cudnn' and jax.default_backend() != 'gpu':
      continue
    found[f'attention, {name}'] = _attention(form)
  return found


def _attention(form: Callable) -> dict[str, float]:
  """Relative errors of an attention in bfloat16, and of its gradients.

  Against the plain form in float32, in packed rows of two examples each.
  """
  names = 'query', 'key', 'value', 'bias'
  keys = jax.random.split(jax.random.key(0), 5)
  shape = 8, 12, 112, 64
  exact = [jax.random.normal(key, shape) / 3 for key in keys[:3]] + [
    jax.random.normal(keys[3], (1, 12, 112, 112))
  ]
  weights = jax.random.normal(keys[4], shape)
  segments = np.arange(112) // 50  # the last 12 are padding
  mask = (segments[:, None] == segments) & (segments < 2)
  mask = jnp.array(np.broadcast_to(mask, (8, 1, 112, 112)))
  real = jnp.array(segments < 2)[:, None]

  def loss(form, *arrays):
    context = form(*arrays, mask)
    return jnp.sum(jnp.where(real, context * weights, 0).astype(jnp.float32))

  def gradients(form, arrays):
    of = jax.jit(jax.grad(functools.partial(loss, form), argnums=(0, 1, 2, 3)))
    return of(*arrays)

  rounded = [array.astype(jnp.bfloat16) for array in exact[:3]] + exact[3:]
  wide = [array.astype(jnp.float32) for array in rounded]
  expected = gradients(attentions.WAYS['plain'], wide)
  found = gradients(form, rounded)
  return {
    name: float(jnp.linalg.norm(ours - best) / jnp.linalg.norm(best))
    for name, ours, best in zip(names, found, expected, strict=True)
  }


def _trajectory(recording, dtype: str, join_views: bool) -> dict[str, float]:
  """Worst differences from a recording's 100 steps."""
  config = dataclasses.replace(recording.config, dtype=dtype)
  retrace = replay.runner(jax.jit, config, optimizer.adamw, 0, join_views)
  ((rate, final),) = recording.finals.items()
  params = recording.params(recording.start)
  state, metrics = retrace(params, recording.batches['unpadded'], rate)
  terms = replay.our_terms(metrics)
  recorded = recording.terms[rate]
  losses = [name for name in terms if name.endswith('loss')]
  apart = jax.tree.map(
    lambda ours, theirs: float(np.max(np.abs(np.asarray(ours) - theirs))),
    state.params,
    recording.params(final),
  )
  return {
    'loss': max(replay.deviation(terms[n], recorded[n]) for n in losses),
    'gradient_norm': replay.deviation(
      terms['grad_norm'], recorded['grad_norm']
    ),
    'weights': max(jax.tree.leaves(apart)),
  }


def _outputs(folder: pathlib.Path, dtype: str) -> dict[str, float]:
  """Logits and greedy outputs of a recorded model."""
  config = hf_checkpoint.config_from_hf(folder)
  config = dataclasses.replace(config, dtype=dtype)
  params = hf_checkpoint.load_params(folder, config)
  recorded = np.load(folder / 'forward.npz', allow_pickle=False)
  labels = recorded['small_labels']
  rows = {
    'encoder_input_tokens': recorded['small_input_ids']
    * recorded['small_attention_mask'],
    'decoder_input_tokens': recorded['small_decoder_input_ids'],
    'decoder_target_tokens': np.where(labels == -100, 0, labels),
  }
  logits = jax.jit(lambda p, r: network.apply(p, config, r))(params, rows)
  real = labels != -100
  off = np.abs(np.asarray(logits) - recorded['small_logits'])[real]
  equal = total = 0
  for side in ('pred', 'expl'):
    inputs = recorded[f'{side}_input_ids'] * recorded[f'{side}_attention_mask']
    expected = recorded[f'{side}_greedy_ids'][:, 1:]
    found = jax.jit(
      lambda p, r: decoding.greedy(p, config, r, max_decode_len=32)
    )(params, {'encoder_input_tokens': inputs.astype(np.int32)})
    found = np.asarray(found)[:, : expected.shape[1]]
    equal += int(np.all(found == expected, axis=1).sum())
    total += len(expected)
  return {
    'logits': float(np.max(off)),
    'outputs_equal': equal,
    'outputs': total,
  }


if __name__ == '__main__':
  main()
