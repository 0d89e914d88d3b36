# SPDX-License-Identifier: Apache-2.0
"""python -m tests.recordings.record_lora: records LoRA as PEFT trains it.

Wraps the T5 1.1 of `record.py`, at its start weights, in PEFT's LoRA and takes
20 steps of the same objective on the same batches with torch's AdamW. Uses
nothing of dsbs_jax. Needs torch, transformers and peft.
"""

import numpy as np
import peft
import torch
import transformers

from tests.recordings import record, start_weights

FILE = record.FOLDER / 't5_1_1' / 'lora.npz'
STEPS, LEARNING_RATE = 20, 1e-2
RANK, ALPHA = 3, 5
TARGETS = ('q', 'v', 'wo', 'lm_head')


def main() -> None:
  torch.set_num_threads(1)
  model = peft.get_peft_model(
    record.start('t5_1_1'),
    peft.LoraConfig(
      r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS), lora_dropout=0.0
    ),
  )
  trained = {
    name.removeprefix('base_model.model.').replace('.default', ''): weight
    for name, weight in model.named_parameters()
    if weight.requires_grad
  }
  drawn = start_weights.draw({k: tuple(v.shape) for k, v in trained.items()})
  with torch.no_grad():
    for name, weight in trained.items():
      if 'lora_A' in name:  # PEFT's own are random, its B is 0
        weight.copy_(torch.from_numpy(drawn[name]))
      else:
        assert not weight.any()
  batches = np.load(record.FOLDER / 'batches.npz')
  optimizer = torch.optim.AdamW(
    trained.values(), lr=LEARNING_RATE, weight_decay=0.0
  )
  schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, STEPS)
  terms = []
  for step in range(STEPS):
    losses = [
      model(**record.batch(batches, step, task)).loss
      for task in record.PREFIXES
    ]
    total = record.ALPHA * losses[0] + (1 - record.ALPHA) * losses[1]
    optimizer.zero_grad()
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
    terms.append([value.item() for value in (*losses, total, norm)])
    optimizer.step()
    schedule.step()
  print(*terms, sep='\n')
  np.savez_compressed(
    FILE,
    terms=np.array(terms),
    **{name: weight.detach().numpy() for name, weight in trained.items()},
  )


if __name__ == '__main__':
  main()
