# SPDX-License-Identifier: Apache-2.0
"""python -m bench.engines_ct2: generating on CPUs, engine beside engine.

The built-in engine, CTranslate2 in float32 and int8 and, where it is installed,
transformers decode the same random inputs greedily with the same random
parameters, in turns. Random students rarely end early, so every row gets all of
its tokens. CPU seconds are printed beside rates: on a busy machine their ratio
holds where the rates do not. `engines` gives the functions to other benchmarks.

  python -m bench.engines_ct2 --size=small --lengths=8,64 --threads=2
"""

import argparse
import dataclasses
import importlib.util
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from dsbs_jax.core import partitioning
from dsbs_jax.core.t5 import network
from dsbs_jax.inference import ct2_engine, decode_functions, length_buckets
from dsbs_jax.interop import ct2_model, hf_checkpoint

# T5 1.1: width, heads, MLP, layers per stack; 64 per head.
SIZES = {
  'mini': (256, 4, 512, 4),
  'small': (512, 6, 1024, 8),
  'base': (768, 12, 2048, 12),
}
VOCAB_SIZE = 32128
NUM_ROWS = 32
LENGTHS = (25, 61)  # of inputs, the second excluded

# (tokens [B, S], tokens to generate) -> tokens that were generated.
Generate = Callable[[np.ndarray, int], int]


def engines(
  config: network.T5Config, params: dict, threads: int
) -> Mapping[str, Generate]:
  """The engines that are installed, by name.

  Args:
    config: a T5 1.1.
    params: its parameters, NumPy arrays.
    threads: of each engine but the built-in one, which takes all cores.
  """
  found = {'built-in': _built_in(config, params)}
  for quantization in ('float32', 'int8'):
    found[f'ct2 {quantization}'] = _ct2(config, params, quantization, threads)
  if importlib.util.find_spec('transformers'):
    found['transformers'] = _transformers(config, params, threads)
  return found


def drawn(config: network.T5Config) -> dict:
  """Random parameters of the usual size."""
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: 0.05 * random.standard_normal(leaf.shape, np.float32),
    network.param_shapes(config),
  )


def inputs() -> np.ndarray:
  """[32, 60] int32: rows of 25 to 60 tokens, the end included."""
  random = np.random.default_rng(1)
  tokens = np.zeros((NUM_ROWS, LENGTHS[1] - 1), np.int32)
  for row, length in zip(
    tokens, random.integers(*LENGTHS, NUM_ROWS), strict=True
  ):
    row[: length - 1] = random.integers(3, VOCAB_SIZE, length - 1)
    row[length - 1] = 1
  return tokens


def _built_in(config: network.T5Config, params: dict) -> Generate:
  mesh = partitioning.make_mesh('1x1')
  shapes = length_buckets.LengthBuckets(NUM_ROWS)
  placed = jax.device_put(params)

  def generate(tokens: np.ndarray, length: int) -> int:
    decode = decode_functions.jit_decode(config, mesh, max_decode_len=length)
    width = shapes.input_length(tokens.shape[1])
    padded = np.pad(tokens, ((0, 0), (0, width - tokens.shape[1])))
    outputs = decode(placed, {'encoder_input_tokens': padded})
    return int(np.count_nonzero(outputs))

  return generate


def _ct2(
  config: network.T5Config, params: dict, quantization: str, threads: int
) -> Generate:
  with tempfile.TemporaryDirectory() as folder:
    ct2_model.save(
      folder,
      params,
      config,
      tokens=[str(token) for token in range(config.vocab_size)],
      quantization=quantization,
    )
    engine = ct2_engine.Engine(
      folder,
      compute_type={'int8': 'int8_float32'}.get(quantization, quantization),
      vocab_size=config.vocab_size,
      num_threads=threads,
    )

  def generate(tokens: np.ndarray, length: int) -> int:
    outputs, _ = engine.generate(tokens, max_decode_len=length)
    return int(np.count_nonzero(outputs))

  return generate


def _transformers(
  config: network.T5Config, params: dict, threads: int
) -> Generate:
  import torch
  import transformers

  torch.set_num_threads(threads)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'hf'
    hf_checkpoint.save_hf(path, params, config)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(path).eval()

  def generate(tokens: np.ndarray, length: int) -> int:
    ids = torch.tensor(tokens, dtype=torch.long)
    with torch.inference_mode():
      outputs = model.generate(
        input_ids=ids,
        attention_mask=(ids != 0).long(),
        do_sample=False,
        num_beams=1,
        max_new_tokens=length,
      )
    return int((outputs[:, 1:] != 0).sum())

  return generate


@dataclasses.dataclass
class _Times:
  """Seconds per batch, one per round."""

  wall: list[float] = dataclasses.field(default_factory=list)
  cpu: list[float] = dataclasses.field(default_factory=list)
  tokens: int = 0

  def add(self, function: Callable[[], int]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    self.tokens = function()
    self.wall.append(time.perf_counter() - wall)
    self.cpu.append(time.process_time() - cpu)


def measure(
  found: Mapping[str, Generate], lengths: Sequence[int], rounds: int
) -> dict[tuple[str, int], _Times]:
  """Times of all engines, in turns.

  Args:
    found: of `engines`.
    lengths: tokens to generate.
    rounds: how often; a first one, which compiles, is not counted.
  """
  tokens = inputs()
  times = {(name, length): _Times() for name in found for length in lengths}
  for number in range(rounds + 1):
    for (name, length), own in times.items():
      if number:
        own.add(lambda n=name, k=length: found[n](tokens, k))
      else:
        found[name](tokens, length)
  return times


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--size', default='small', choices=SIZES)
  parser.add_argument('--lengths', default='8,64')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument(
    '--threads', type=int, default=len(os.sched_getaffinity(0))
  )
  options = parser.parse_args()
  width, heads, mlp, layers = SIZES[options.size]
  config = network.T5Config(
    vocab_size=VOCAB_SIZE,
    emb_dim=width,
    num_heads=heads,
    head_dim=64,
    mlp_dim=mlp,
    num_encoder_layers=layers,
    num_decoder_layers=layers,
  )
  lengths = [int(length) for length in options.lengths.split(',')]
  found = engines(config, drawn(config), options.threads)
  times = measure(found, lengths, options.rounds)
  print(
    '| engine | tokens | rows/s, median | best | CPU s per batch | tokens |'
  )
  print('|---|---:|---:|---:|---:|---:|')
  for (name, length), own in times.items():
    rates = [NUM_ROWS / seconds for seconds in own.wall]
    print(
      f'| {name} | {length} | {statistics.median(rates):.1f} |'
      f' {max(rates):.1f} | {statistics.median(own.cpu):.2f} | {own.tokens} |'
    )


if __name__ == '__main__':
  main()
