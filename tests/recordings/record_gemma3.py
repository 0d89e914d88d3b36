# SPDX-License-Identifier: Apache-2.0
"""Records a small Gemma 3 of transformers: weights, logits, answers, training.

  python -m tests.recordings.record_gemma3

Uses nothing of dsbs_jax. Writes gemma3/ beside this file: what
`Gemma3ForCausalLM` computes with random weights, on sequences longer than its
window. Training is 50 steps of torch's AdamW on half of the mean loss of the
labels and half of that of the rationales, as in the paper, without padding.
"""

import pathlib
from collections.abc import Callable

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent / 'gemma3'
VOCABULARY, WINDOW, STEPS, RATE = 96, 6, 50, 2e-3
NEW_TOKENS = 10


def config() -> transformers.Gemma3TextConfig:
  """Three layers, the second global; keys and values have two heads of four."""
  return transformers.Gemma3TextConfig(
    vocab_size=VOCABULARY,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    query_pre_attn_scalar=12,
    sliding_window=WINDOW,
    layer_types=['sliding_attention', 'full_attention', 'sliding_attention'],
    attn_implementation='eager',
  )


def model() -> transformers.Gemma3ForCausalLM:
  torch.manual_seed(0)
  return randomised(transformers.Gemma3ForCausalLM(config()))


def randomised(made: torch.nn.Module) -> torch.nn.Module:
  """The model with random weights of a plausible size, of the norms too."""
  with torch.no_grad():
    for name, weight in made.named_parameters():
      std = 0.3 if 'norm' in name else weight.shape[-1] ** -0.5
      weight.copy_(std * torch.randn_like(weight))
  return made.eval()


def ids(rng: np.random.Generator, rows: int, shortest: int, longest: int):
  """[rows, longest] int64, 0 behind each row's own length; no special ids."""
  found = rng.integers(4, VOCABULARY, (rows, longest))
  lengths = rng.integers(shortest, longest + 1, rows)
  lengths[0] = longest
  return np.where(np.arange(longest) < lengths[:, None], found, 0)


def ended(targets: np.ndarray) -> np.ndarray:
  """The last id of each row becomes the end id."""
  last = (targets > 0).sum(1) - 1
  targets[np.arange(len(targets)), last] = 1
  return targets


def target_logits(made, inputs, targets):
  """Per row, the logits that score its targets, [T, V]; nothing is padded."""
  for source, target in zip(inputs, targets, strict=True):
    source, target = source[source > 0], target[target > 0]
    sequence = torch.tensor(np.concatenate([source, target]))[None]
    logits = made(sequence).logits[0]
    yield logits[len(source) - 1 : -1], torch.tensor(target)


def answer(made, source: np.ndarray) -> np.ndarray:
  """Greedy new tokens for inputs without padding."""
  source = torch.tensor(source)[None]
  found = made.generate(
    source, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
  )
  return found[0, source.shape[1] :].numpy()


def mean_loss(made, inputs, targets, target_logits) -> torch.Tensor:
  """Mean over all target tokens of a batch."""
  logits, wanted = zip(*target_logits(made, inputs, targets), strict=True)
  return torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(wanted))


def record(
  made: transformers.PreTrainedModel,
  folder: pathlib.Path,
  *,
  target_logits: Callable = target_logits,
  answer: Callable = answer,
) -> None:
  """Saves a model, what it computes, and how it trains.

  Args:
    made: the model.
    folder: where to.
    target_logits: yields per row the logits of its targets, and these.
    answer: gives the greedy answer to a row's inputs.
  """
  torch.set_num_threads(1)
  rng = np.random.default_rng(0)
  made.save_pretrained(folder)
  inputs, targets = ids(rng, 4, 3, 17), ended(ids(rng, 4, 2, 9))
  logits = np.zeros((*targets.shape, VOCABULARY), np.float32)
  greedy = np.zeros((len(inputs), NEW_TOKENS), np.int64)
  with torch.no_grad():
    for row, (found, _) in enumerate(target_logits(made, inputs, targets)):
      logits[row, : len(found)] = found.numpy()
    for row, source in enumerate(inputs):
      found = answer(made, source[source > 0])
      greedy[row, : len(found)] = found
  np.savez_compressed(
    folder / 'forward.npz',
    inputs=inputs,
    targets=targets,
    logits=logits,
    greedy=greedy,
  )
  batches = {
    'label_inputs': np.stack([ids(rng, 3, 3, 12) for _ in range(STEPS)]),
    'label_targets': np.stack([ended(ids(rng, 3, 2, 4)) for _ in range(STEPS)]),
    'rationale_inputs': np.stack([ids(rng, 3, 3, 12) for _ in range(STEPS)]),
    'rationale_targets': np.stack(
      [ended(ids(rng, 3, 2, 9)) for _ in range(STEPS)]
    ),
  }
  optimizer = torch.optim.AdamW(made.parameters(), lr=RATE, weight_decay=0.0)
  losses, norms = [], []
  for step in range(STEPS):
    optimizer.zero_grad()
    one, other = (
      mean_loss(
        made,
        batches[f'{view}_inputs'][step],
        batches[f'{view}_targets'][step],
        target_logits,
      )
      for view in ('label', 'rationale')
    )
    loss = 0.5 * one + 0.5 * other
    loss.backward()
    norms.append(torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0).item())
    optimizer.step()
    losses.append([one.item(), other.item(), loss.item()])
  np.savez_compressed(
    folder / 'trajectory.npz',
    losses=np.array(losses),
    grad_norms=np.array(norms),
    **batches,
  )


if __name__ == '__main__':
  record(model(), FOLDER)
