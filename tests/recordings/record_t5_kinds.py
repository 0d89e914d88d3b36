# SPDX-License-Identifier: Apache-2.0
"""Records a small model of every kind of T5, as transformers computes it.

  python -m tests.recordings.record_t5_kinds

Run once with transformers 4.57.6 and once with 5.24.0; each writes its
t5_kinds/transformers<N>.json (the config.json of each kind and the shapes in
its file) and .npz (logits and greedy outputs). Uses nothing of dsbs_jax;
weights are those of start_weights.py, so that no file holds them.
"""

import json
import pathlib
import tempfile

import numpy as np
import safetensors.numpy
import torch
import transformers

from tests.recordings import start_weights

FOLDER = pathlib.Path(__file__).parent / 't5_kinds'
NEW_TOKENS, ROWS, INPUTS, TARGETS = 10, 4, 40, 6
# Greedy outputs that hang on less are the business of rounding.
SAFE_GAP = 1e-3
EMBEDDINGS = (
  'shared.weight',
  'encoder.embed_tokens.weight',
  'decoder.embed_tokens.weight',
)
HEAD = 'lm_head.weight'
# Sizes that all differ: a swap of two axes cannot fit.
COMMON = {
  'vocab_size': 96,
  'd_model': 24,
  'd_kv': 8,
  'd_ff': 40,
  'num_heads': 4,
  'num_layers': 2,
  'num_decoder_layers': 2,
  'decoder_start_token_id': 0,
}
GATED = {'feed_forward_proj': 'gated-gelu', 'tie_word_embeddings': False}
# Kind -> class of transformers, and what differs from COMMON.
KINDS = {
  't5_1_0': ('T5', {'feed_forward_proj': 'relu'}),
  't5_1_1': ('T5', GATED),
  'flan_t5': ('T5', {**GATED, 'n_positions': 512, 'output_past': True}),
  'mt5': ('MT5', {'tie_word_embeddings': False}),
  # 384 ids, and three times as many layers in the encoder.
  'byt5': (
    'T5',
    {**GATED, 'vocab_size': 384, 'num_layers': 3, 'num_decoder_layers': 1},
  ),
  'ul2': ('T5', {**GATED, 'feed_forward_proj': 'gated-silu'}),
  # Small heads, and a deeper encoder or a deeper decoder.
  't5_efficient': (
    'T5',
    {
      'feed_forward_proj': 'relu',
      'num_layers': 3,
      'd_kv': 4,
      'num_decoder_layers': 1,
    },
  ),
  't5_efficient_decoder': (
    'T5',
    {'feed_forward_proj': 'relu', 'num_layers': 1, 'd_kv': 4},
  ),
  'umt5': ('UMT5', {'tie_word_embeddings': False}),
  'umt5_tied': ('UMT5', {}),
  'madlad': ('T5', GATED),
  'mt5_tied': ('MT5', {'tie_word_embeddings': True}),
  'few_buckets': (
    'T5',
    {'relative_attention_num_buckets': 4, 'relative_attention_max_distance': 3},
  ),
}


def make(kind: str):
  """The model of a kind, loaded from a folder as published ones are."""
  family, changes = KINDS[kind]
  config = getattr(transformers, f'{family}Config')(**COMMON | changes)
  auto = getattr(transformers, f'{family}ForConditionalGeneration')
  shapes = {k: tuple(v.shape) for k, v in auto(config).state_dict().items()}
  left_out = {*EMBEDDINGS[1:]}
  if changes.get('tie_word_embeddings') is not False:
    left_out.add(HEAD)
  drawn = start_weights.draw(
    {name: shape for name, shape in shapes.items() if name not in left_out}
  )
  if kind == 'madlad':
    drawn[EMBEDDINGS[2]] = drawn.pop(EMBEDDINGS[0])
  with tempfile.TemporaryDirectory() as folder:
    config.save_pretrained(folder)
    safetensors.numpy.save_file(
      drawn, f'{folder}/model.safetensors', metadata={'format': 'pt'}
    )
    return auto.from_pretrained(folder).eval()


def saved(model) -> tuple[dict, dict]:
  """config.json of a model, and the shapes in the file that it is saved to."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    config = json.loads((pathlib.Path(folder) / 'config.json').read_text())
    tensors = safetensors.numpy.load_file(f'{folder}/model.safetensors')
  return config, {name: tensor.shape for name, tensor in tensors.items()}


def rows(vocabulary: int) -> dict[str, np.ndarray]:
  """Inputs beyond most position buckets, padded at their end; targets."""
  rng = np.random.default_rng(0)
  inputs = rng.integers(3, vocabulary, (ROWS, INPUTS))
  lengths = np.array([INPUTS, 17, 5, 1])
  inputs = np.where(np.arange(INPUTS) < lengths[:, None], inputs, 0)
  targets = rng.integers(3, vocabulary, (ROWS, TARGETS))
  return {'inputs': inputs, 'targets': targets}


def outputs(model, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Logits of the targets, and what is generated greedily."""
  inputs = torch.tensor(given['inputs'])
  mask = (inputs > 0).long()
  before = torch.tensor(np.pad(given['targets'][:, :-1], ((0, 0), (1, 0))))
  with torch.no_grad():
    logits = model(
      input_ids=inputs, attention_mask=mask, decoder_input_ids=before
    ).logits.numpy()
    # A cache as deep as the encoder fails where the decoder is deeper.
    found = model.generate(
      inputs,
      attention_mask=mask,
      max_new_tokens=NEW_TOKENS,
      do_sample=False,
      use_cache=False,
      output_logits=True,
      return_dict_in_generate=True,
    )
  ids = found.sequences[:, 1:].numpy()
  top = torch.stack(found.logits).topk(2).values
  gaps = (top[..., 0] - top[..., 1]).numpy().T
  lives = np.cumsum(ids == 1, axis=1) - (ids == 1) == 0
  assert gaps[lives].min() > SAFE_GAP, gaps[lives].min()
  greedy = np.zeros((ROWS, NEW_TOKENS), np.int64)
  greedy[:, : ids.shape[1]] = ids
  return {'logits': logits, 'greedy': greedy}


def main() -> None:
  torch.set_num_threads(1)
  FOLDER.mkdir(exist_ok=True)
  stated, arrays = {}, {}
  for kind in KINDS:
    model = make(kind)
    config, shapes = saved(model)
    if kind == 'madlad':  # published so, saved as any other
      shapes[EMBEDDINGS[2]] = shapes.pop(EMBEDDINGS[0])
    stated[kind] = {'config': config, 'shapes': shapes}
    given = rows(config['vocab_size'])
    for name, array in (given | outputs(model, given)).items():
      arrays[f'{kind}/{name}'] = array
  path = FOLDER / f'transformers{transformers.__version__.partition(".")[0]}'
  text = json.dumps(stated, indent=1)
  path.with_suffix('.json').write_text(text + '\n')
  np.savez_compressed(path.with_suffix('.npz'), **arrays)


if __name__ == '__main__':
  main()
