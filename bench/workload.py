# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks compute: one model, and batches of real pairs on disk.

Batches are tokenised once and written to one .npz file, laid out in every way
that is compared, so that whatever is timed reads arrays and nothing else: no
TensorFlow, no vocabulary. Keys: LAYOUT/STEP/VIEW/FEATURE.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from dsbs_jax import contract
from dsbs_jax.core import flops, network

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


def parser(description: str, **defaults) -> argparse.ArgumentParser:
  """Flags of what is computed; `configured` reads those of the model."""
  made = argparse.ArgumentParser(description=description)
  made.add_argument('--workload', help='Needed for training.')
  made.add_argument('--vocab_size', type=int, default=32128)
  made.add_argument('--model', default='mini')
  made.add_argument('--layout', default='packed')
  made.add_argument('--dropout', type=float, default=0.1)
  made.add_argument('--dtype', default='float32')
  made.add_argument('--remat', default='none')
  made.add_argument('--scan_layers', action='store_true')
  made.add_argument('--chunk_tokens', type=int, default=0)
  made.add_argument('--decode', action='store_true', help='Not to train.')
  made.set_defaults(**defaults)
  return made


def configured(arguments: argparse.Namespace) -> network.T5Config:
  """The model that the flags describe."""
  return model(
    arguments.model,
    vocab_size=arguments.vocab_size,
    dropout_rate=arguments.dropout,
    dtype=arguments.dtype,
    remat=arguments.remat,
    scan_layers=arguments.scan_layers,
  )


def model(name: str, **options) -> network.Config:
  """A T5 1.1 by name, or 'gemma3_270m'; options are fields of its config."""
  if name == 'gemma3_270m':
    return network.GemmaConfig(
      emb_dim=640,
      num_heads=4,
      num_kv_heads=1,
      head_dim=256,
      mlp_dim=2048,
      num_layers=18,
      **options,
    )
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


def rows_to_decode(vocab_size: int) -> np.ndarray:
  """[32, S] int32: random inputs of 25 to 60 tokens, always the same."""
  random = np.random.default_rng(0)
  lengths = random.integers(25, 61, 32)
  ids = random.integers(2, vocab_size, (len(lengths), lengths.max()))
  return np.where(np.arange(lengths.max()) < lengths[:, None], ids, 0).astype(
    np.int32
  )


@dataclasses.dataclass(frozen=True)
class Workload:
  """Batches of pairs in all layouts."""

  facts: Mapping[str, object]  # where they come from, in words and numbers
  arrays: Mapping[str, np.ndarray]  # by key, see above

  @property
  def num_steps(self) -> int:
    """Batches that it holds."""
    return int(self.facts['num_steps'])

  def batch(self, layout: str, step: int) -> dict[str, dict[str, np.ndarray]]:
    """The batch of a step, as the train step takes it.

    Args:
      layout: 'packed', 'padded', ...
      step: counted from 0; they begin anew behind the last one.
    """
    prefix = f'{layout}/{step % self.num_steps}/'
    found: dict = {}
    for key, array in self.arrays.items():
      if key.startswith(prefix):
        view, feature = key.removeprefix(prefix).split('/')
        found.setdefault(view, {})[feature] = array
    return found

  def examples(self, step: int, view: str) -> list[tuple[np.ndarray, ...]]:
    """(inputs, targets) ids of each example of a batch, without padding."""
    rows = self.batch('padded', step)[view]
    sides = rows['encoder_input_tokens'], rows['decoder_target_tokens']
    pairs = [
      tuple(ids[ids > 0] for ids in pair) for pair in zip(*sides, strict=True)
    ]
    return [pair for pair in pairs if len(pair[1])]

  def useful_flops(self, config: network.T5Config, step: int) -> float:
    """FLOPs of a step without any padding, each example by itself."""
    return sum(
      flops.train(config, len(inputs), len(targets))
      for view in VIEWS
      for inputs, targets in self.examples(step, view)
    )

  def laid_flops(
    self, config: network.T5Config, layout: str, step: int
  ) -> float:
    """FLOPs of a step as a layout has it computed, padding included."""
    total = 0.0
    for rows in self.batch(layout, step).values():
      num_rows, targets = rows['decoder_target_tokens'].shape
      inputs = rows['encoder_input_tokens'].shape[1]
      tokens = None
      if 'encoder_token_index' in rows:
        sides = 'encoder_token_index', 'decoder_token_index'
        tokens = tuple(rows[side].size for side in sides)
      total += flops.train(
        config, inputs, targets, rows=num_rows, tokens=tokens
      )
    return total

  def save(self, path: pathlib.Path) -> None:
    """Writes one .npz file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, facts=json.dumps(dict(self.facts)), **self.arrays)


def load(path: pathlib.Path | str) -> Workload:
  """Reads what `save` wrote."""
  with np.load(path, allow_pickle=False) as stored:
    arrays = {key: stored[key] for key in stored.files}
  return Workload(json.loads(str(arrays.pop('facts'))), arrays)
