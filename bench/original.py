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
from dsbs_jax.interop.hf import gemma_config, hf_layout

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
  ours = workload.configured(arguments)
  if arguments.model.startswith('gemma'):
    # transformers has none inside of it.
    assert not ours.dropout_rate, 'Gemma 3 is trained without: --dropout=0'
    kind = transformers.Gemma3ForCausalLM
    values = gemma_config.config_values(ours) | {'use_cache': False}
  else:
    kind = transformers.T5ForConditionalGeneration
    values = hf_layout.config_values(ours)
  return kind(kind.config_class(**values))


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
) -> dict[str, torch.Tensor]:
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

  def pad(sequences, filler):
    return torch.nn.utils.rnn.pad_sequence(
      [torch.from_numpy(ids).long() for ids in sequences],
      batch_first=True,
      padding_value=filler,
    )

  ids = pad(inputs, 0)
  mask = pad([np.ones_like(each) for each in inputs], 0)
  return {
    'input_ids': ids,
    'attention_mask': mask,
    'labels': pad(targets, -100),
  }


if __name__ == '__main__':
  main()
