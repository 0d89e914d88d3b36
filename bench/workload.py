# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks compute: one model, and batches of real pairs on disk.

Batches are tokenised once and written to one .npz file, laid out in every way
that is compared, so that whatever is timed reads arrays and nothing else: no
TensorFlow, no vocabulary. Keys: LAYOUT/STEP/VIEW/FEATURE, and for the padding
of the original code raw/STEP/VIEW/{inputs,targets}, ragged with lengths.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import flops
from dsbs_jax.core.t5 import network

VIEWS = (contract.LABEL_VIEW, contract.RATIONALE_VIEW)


# gin/models of the same names: the speed comparisons on CPU, the smallest, and
# those of the paper.
SIZES = {
  'tiny': (128, 4, 32, 256, 2),
  'mini': (256, 4, 64, 512, 4),
  'small': (512, 6, 64, 1024, 8),
  'base': (768, 12, 64, 2048, 12),
  'large': (1024, 16, 64, 2816, 24),
}


def model(name: str, **options) -> network.T5Config:
  """A T5 1.1 by name; options are fields of T5Config."""
  emb_dim, num_heads, head_dim, mlp_dim, num_layers = SIZES[name]
  return network.T5Config(
    emb_dim=emb_dim,
    num_heads=num_heads,
    head_dim=head_dim,
    mlp_dim=mlp_dim,
    num_encoder_layers=num_layers,
    num_decoder_layers=num_layers,
    **options,
  )


@dataclasses.dataclass(frozen=True)
class Workload:
  """Batches of pairs in all layouts.

  Attributes:
    facts: where they come from, in words and numbers.
    arrays: by key, see above.
  """

  facts: Mapping[str, object]
  arrays: Mapping[str, np.ndarray]

  @property
  def num_steps(self) -> int:
    """Batches that it holds."""
    return int(self.facts['num_steps'])

  def batch(self, layout: str, step: int) -> dict[str, dict[str, np.ndarray]]:
    """The batch of a step, as the train step takes it."""
    prefix = f'{layout}/{step % self.num_steps}/'
    found: dict = {}
    for key, array in self.arrays.items():
      if key.startswith(prefix):
        view, feature = key.removeprefix(prefix).split('/')
        found.setdefault(view, {})[feature] = array
    return found

  def examples(self, step: int, view: str) -> list[tuple[np.ndarray, ...]]:
    """Unpadded (inputs, targets) ids of each example of a batch."""
    prefix = f'raw/{step % self.num_steps}/{view}'
    sides = []
    for side in ('inputs', 'targets'):
      flat = self.arrays[f'{prefix}/{side}']
      lengths = self.arrays[f'{prefix}/{side}_lengths']
      sides.append(np.split(flat, np.cumsum(lengths)[:-1]))
    return list(zip(*sides, strict=True))

  def useful_flops(self, config: network.T5Config, step: int) -> float:
    """FLOPs of a step without any padding, each example by itself."""
    total = 0.0
    for view in VIEWS:
      prefix = f'raw/{step % self.num_steps}/{view}'
      inputs, targets = (
        self.arrays[f'{prefix}/{side}_lengths'].astype(float)
        for side in ('inputs', 'targets')
      )
      total += flops.train(config, inputs, targets).sum()
    return total

  def laid_flops(
    self, config: network.T5Config, layout: str, step: int
  ) -> float:
    """FLOPs of a step as a layout has it computed, padding included."""
    return sum(
      flops.train(
        config,
        rows['encoder_input_tokens'].shape[1],
        rows['decoder_target_tokens'].shape[1],
        rows=len(rows['decoder_target_tokens']),
        tokens=(
          rows['encoder_token_index'].size,
          rows['decoder_token_index'].size,
        )
        if 'encoder_token_index' in rows
        else None,
      )
      for rows in self.batch(layout, step).values()
    )

  def save(self, path: pathlib.Path) -> None:
    """Writes one .npz file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, facts=json.dumps(dict(self.facts)), **self.arrays)


def load(path: pathlib.Path | str) -> Workload:
  """Reads what `save` wrote."""
  with np.load(path, allow_pickle=False) as stored:
    arrays = {key: stored[key] for key in stored.files}
  return Workload(json.loads(str(arrays.pop('facts'))), arrays)
