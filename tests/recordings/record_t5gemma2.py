# SPDX-License-Identifier: Apache-2.0
"""Records a small T5Gemma 2 of transformers, as record_gemma3.py does its own.

  python -m tests.recordings.record_t5gemma2

Needs transformers 5. Uses nothing of dsbs_jax. Writes t5gemma2/ beside this
file; inputs and targets are longer than the window.
"""

import pathlib

import numpy as np
import torch
import transformers

from tests.recordings import record_gemma3

FOLDER = pathlib.Path(__file__).parent / 't5gemma2'
BOS = 2


def config() -> transformers.T5Gemma2Config:
  """Stacks as that of record_gemma3.py, and the least to see pictures with."""
  stack = {
    'vocab_size': record_gemma3.VOCABULARY,
    'hidden_size': 24,
    'intermediate_size': 40,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 8,
    'query_pre_attn_scalar': 12,
    'sliding_window': record_gemma3.WINDOW,
    'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention'],
    'rope_parameters': {
      'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4},
      'full_attention': {
        'rope_type': 'linear',
        'rope_theta': 1e6,
        'factor': 8.0,
      },
    },
  }
  vision = {
    'model_type': 'siglip_vision_model',
    'hidden_size': 4,
    'intermediate_size': 4,
    'num_hidden_layers': 1,
    'num_attention_heads': 1,
    'image_size': 2,
    'patch_size': 2,
  }
  return transformers.T5Gemma2Config(
    encoder={
      'text_config': stack,
      'vision_config': vision,
      'mm_tokens_per_image': 1,
    },
    decoder=stack,
    attn_implementation='eager',
  )


def model() -> transformers.T5Gemma2ForConditionalGeneration:
  """With weights of a plausible size, of the norms too."""
  torch.manual_seed(0)
  return record_gemma3.randomised(
    transformers.T5Gemma2ForConditionalGeneration(config())
  )


def target_logits(made, inputs, targets):
  """Per row, the logits that score its targets, [T, V]; nothing is padded."""
  for source, target in zip(inputs, targets, strict=True):
    source, target = (torch.tensor(row[row > 0]) for row in (source, target))
    yield made(input_ids=source[None], labels=target[None]).logits[0], target


def answer(made, source: np.ndarray) -> np.ndarray:
  """Greedy new tokens for inputs without padding."""
  found = made.generate(
    torch.tensor(source)[None],
    max_new_tokens=record_gemma3.NEW_TOKENS,
    do_sample=False,
  )[0]
  assert found[0] == BOS
  return found[1:].numpy()


if __name__ == '__main__':
  record_gemma3.record(
    model(), FOLDER, target_logits=target_logits, answer=answer
  )
