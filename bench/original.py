# SPDX-License-Identifier: Apache-2.0
"""python -m bench.original: a worker that trains as the original code does.

PyTorch and transformers' T5 or Gemma 3 (`pip install -e '.[hf]'`), both tasks
of the same examples in every step, each padded to the longest of its batch, the
weighted sum of two mean losses, clipping, AdamW, a linear schedule. What a
Trainer adds around that (logging, callbacks) is left out, which only makes it
faster.
"""

import os

os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
os.environ.setdefault('USE_TF', '0')  # transformers would import TensorFlow

import numpy as np
import torch
import transformers

from bench import worker, workload

ALPHA = 0.5


def main() -> None:
  parser = workload.parser(__doc__)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--device', default='cpu', help='Such as cuda.')
  parser.add_argument(
    '--decode_rows', type=int, default=0, help='0: the 32 of all.'
  )
  arguments = parser.parse_args()
  torch.set_num_threads(arguments.threads)
  torch.manual_seed(0)
  model = _model(arguments).to(arguments.device)
  ready = {
    'torch': torch.__version__,
    'transformers': transformers.__version__,
  }
  if arguments.decode:
    # As training keeps float32 weights, only decoding follows the dtype.
    model = model.to(getattr(torch, arguments.dtype))
    worker.serve(_decoder(model, arguments), ready)
  else:
    data = workload.load(arguments.workload)
    worker.serve(_trainer(data, model), ready | {'num_steps': data.num_steps})


def _model(arguments) -> transformers.PreTrainedModel:
  name, *sizes = arguments.model, arguments.vocab_size, arguments.dropout
  if name.startswith('gemma'):
    return transformers.Gemma3ForCausalLM(_gemma_config(name, *sizes))
  return transformers.T5ForConditionalGeneration(_config_of(name, *sizes))


def _gemma_config(
  name: str, vocab_size: int, dropout: float
) -> transformers.Gemma3TextConfig:
  """The same model in transformers' words, which know no dropout but one."""
  assert not dropout, 'Gemma 3 is trained without dropout: --dropout=0'
  ours = workload.model(name, vocab_size=vocab_size)
  return transformers.Gemma3TextConfig(
    vocab_size=vocab_size,
    hidden_size=ours.emb_dim,
    num_attention_heads=ours.num_heads,
    num_key_value_heads=ours.num_kv_heads,
    head_dim=ours.head_dim,
    intermediate_size=ours.mlp_dim,
    num_hidden_layers=ours.num_layers,
    sliding_window=ours.window,
    use_cache=False,
  )


def _config_of(
  name: str, vocab_size: int, dropout: float
) -> transformers.T5Config:
  """The same model in transformers' words."""
  ours = workload.model(name, vocab_size=vocab_size)
  return transformers.T5Config(
    vocab_size=vocab_size,
    d_model=ours.emb_dim,
    d_kv=ours.head_dim,
    d_ff=ours.mlp_dim,
    num_layers=ours.num_encoder_layers,
    num_decoder_layers=ours.num_decoder_layers,
    num_heads=ours.num_heads,
    dropout_rate=dropout,
    feed_forward_proj='gated-gelu',
    tie_word_embeddings=False,
    decoder_start_token_id=0,
  )


def _trainer(data: workload.Workload, model):
  """(batch number) -> one optimizer step."""
  model.train()
  causal = not model.config.is_encoder_decoder
  optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)
  schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, 10_000)

  def step(request):
    losses = []
    for view in workload.VIEWS:
      rows = _padded(data, int(request), view, causal).items()
      rows = {name: ids.to(model.device) for name, ids in rows}
      losses.append(model(**rows).loss)
    loss = ALPHA * losses[0] + (1 - ALPHA) * losses[1]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    return {'loss': float(loss.detach())}

  return step


def _decoder(model, arguments):
  """(length) -> greedy outputs of so many tokens; of labels with a workload."""
  model.eval()
  tokens = workload.rows_to_decode(arguments.vocab_size)
  if arguments.workload:
    data = workload.load(arguments.workload)
    tokens = _padded(data, 0, 'label')['input_ids'].numpy()
  chosen = np.arange(arguments.decode_rows or len(tokens)) % len(tokens)
  ids = torch.from_numpy(tokens[chosen]).long().to(model.device)

  def generate(request):
    with torch.no_grad():
      tokens = model.generate(
        input_ids=ids,
        attention_mask=(ids > 0).long(),
        do_sample=False,
        num_beams=1,
        min_new_tokens=int(request),
        max_new_tokens=int(request),
      )
    assert tokens.shape[1] == 1 + int(request)
    return {'rows': len(tokens), 'tokens': tokens[:, 1:].numel()}

  return generate


def _padded(
  data: workload.Workload, step: int, view: str, causal: bool = False
) -> dict:
  """A batch as transformers' collator lays it out.

  Args:
    data: the workload.
    step: batch number.
    view: 'label' or 'rationale'.
    causal: whether inputs and targets are one sequence, as for a decoder alone,
      whose labels are the targets.
  """
  inputs, targets = zip(*data.examples(step, view), strict=True)
  if causal:
    pairs = list(zip(inputs, targets, strict=True))
    inputs = [np.concatenate(pair) for pair in pairs]
    targets = [np.concatenate([np.full_like(i, -100), t]) for i, t in pairs]
  ids, mask = _pad(inputs, 0)
  labels, _ = _pad(targets, -100)
  return {
    'input_ids': torch.from_numpy(ids),
    'attention_mask': torch.from_numpy(mask),
    'labels': torch.from_numpy(labels),
  }


def _pad(sequences, filler):
  width = max(map(len, sequences))
  ids = np.full((len(sequences), width), filler, np.int64)
  mask = np.zeros_like(ids)
  for row, sequence in enumerate(sequences):
    ids[row, : len(sequence)] = sequence
    mask[row, : len(sequence)] = 1
  return ids, mask


if __name__ == '__main__':
  main()
