# SPDX-License-Identifier: Apache-2.0
"""python -m tests.recordings.record: records the original method in PyTorch.

Trains transformers' T5 as the paper's code does, on the bundled benchmark, and
writes what the tests of parity compare with (README.md tells file by file). It
uses nothing of ours, so that no mistake of ours can be on both sides: rows are
read, parsed and tokenised here. Torch and transformers are pinned in
constraints.txt: `pip install -c constraints.txt -e '.[hf]'`.
"""

import contextlib
import io
import json
import os
import pathlib
from unittest import mock

os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')

import numpy as np
import sentencepiece
import torch
import transformers

from tests.recordings import start_weights

FOLDER = pathlib.Path(__file__).parent
PARCELS = FOLDER.parents[1] / 'examples' / 'parcels'
STEPS, BATCH_SIZE, ALPHA, LEARNING_RATE = 100, 8, 0.5, 2e-3
PIECES, EXTRA_IDS = 92, 100
PREFIXES = {'pred': 'predict: ', 'expl': 'explain: '}
NEW_TOKENS, BEAMS = 32, 4
# Outputs that hang on less than this are not recorded: another order of
# summation may choose otherwise.
SAFE_GAP = 1e-3
# Sizes that all differ: a swap of two axes cannot fit.
COMMON = {
  'vocab_size': PIECES + EXTRA_IDS,
  'num_layers': 2,
  'num_decoder_layers': 2,
  'dropout_rate': 0.0,
  'decoder_start_token_id': 0,
}
MODELS = {
  't5_1_1': {
    'd_model': 24,
    'd_kv': 8,
    'd_ff': 40,
    'num_heads': 4,
    'feed_forward_proj': 'gated-gelu',
    'tie_word_embeddings': False,
  },
  't5_1_0': {
    'd_model': 16,
    'd_kv': 6,
    'd_ff': 28,
    'num_heads': 2,
    'feed_forward_proj': 'relu',
  },
}
# The gradient of its ReLU jumps at 0: rounding alone may move the norm by 2e-3.
WITHOUT_TRAJECTORY = ('t5_1_0',)
TEXTS = (
  '  two  blanks ',
  'kg',
  '9999 kg',
  '<extra_id_0> lamp or drum <extra_id_99>',
  'lamp or drum?</s>desk or key?',
  'ж 漢字 {braces} ½',
  '',
)


def main() -> None:
  torch.set_num_threads(1)
  torch.use_deterministic_algorithms(True)
  tokenizer = make_tokenizer()
  texts = [*TEXTS]
  for split in ('validation', 'test'):
    texts += [text for row in rows(split)[:20] for text in row]
  cases = {'texts': texts, 'ids': [tokenizer(text).input_ids for text in texts]}
  (FOLDER / 'tokenizer_cases.json').write_text(json.dumps(cases) + '\n')
  batches = make_batches(tokenizer)
  np.savez_compressed(FOLDER / 'batches.npz', **batches)
  for name in MODELS:
    model = start(name)
    recorded = train(model, batches, torch.optim.AdamW)
    with exact():
      double = start(name).double()
      recorded |= renamed('{}_f64', train(double, batches, torch.optim.AdamW))
    other = train(start(name), batches, OldAdamW)
    recorded |= renamed('{}_adamw_hf', other)
    print(name, *deviations(recorded, model, double), sep='\n  ')
    if name not in WITHOUT_TRAJECTORY:
      np.savez_compressed(FOLDER / name / 'trajectory.npz', **recorded)
    model.save_pretrained(FOLDER / name)
    (FOLDER / name / 'generation_config.json').unlink()
    outputs = forward_passes(model, tokenizer)
    for task in PREFIXES:
      inputs = safe_inputs(model, double, tokenizer, task)
      outputs |= renamed(f'{task}_{{}}', generate(model, inputs))
    np.savez_compressed(FOLDER / name / 'forward.npz', **outputs)


def rows(split: str) -> list[tuple[str, str, str]]:
  """(input, label, rationale) of each row; no rationale is one blank."""

  def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]

  found = []
  for row, completion in zip(
    read(PARCELS / f'{split}.jsonl'),
    read(PARCELS / 'llm' / f'{split}.jsonl'),
    strict=True,
  ):
    rationale, marker, _ = completion['text'].partition(' So the answer is')
    found.append(
      (
        f'{row["first"]} or {row["second"]}?',
        row['heavier'],
        rationale if marker else ' ',
      )
    )
  return found


def make_tokenizer() -> transformers.T5Tokenizer:
  """A vocabulary of the training rows, as a T5 tokenizer."""
  model = FOLDER / 'spiece.model'
  written = io.BytesIO()  # a path would be kept in the file
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(
      [text for row in rows('train') for text in row]
      + [*PREFIXES.values()] * 100
    ),
    model_writer=written,
    vocab_size=PIECES,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    # T5's own rule is a table of 240 kB.
    normalization_rule_name='identity',
    num_threads=1,
    minloglevel=2,
  )
  model.write_bytes(written.getvalue())
  return transformers.T5Tokenizer(str(model), extra_ids=EXTRA_IDS)


def make_batches(tokenizer) -> dict[str, np.ndarray]:
  """All batches of both tasks, each to be cut to its own longest row."""
  batches = {}
  examples = rows('train')[: STEPS * BATCH_SIZE]
  for task, prefix in PREFIXES.items():
    inputs = [tokenizer(prefix + row[0]).input_ids for row in examples]
    column = {'pred': 1, 'expl': 2}[task]
    targets = [tokenizer(row[column]).input_ids for row in examples]
    ids, mask = pad(inputs, 0)
    labels, _ = pad(targets, -100)
    by_step = (STEPS, BATCH_SIZE, -1)
    batches[f'{task}_input_ids'] = ids.reshape(by_step)
    batches[f'{task}_attention_mask'] = mask.reshape(by_step)
    batches[f'{task}_labels'] = labels.reshape(by_step)
    for side, sequences in (('input', inputs), ('label', targets)):
      lengths = np.array([len(ids) for ids in sequences])
      batches[f'{task}_{side}_len'] = lengths.reshape(STEPS, -1).max(axis=1)
  return {name: array.astype(np.int16) for name, array in batches.items()}


def pad(sequences, filler):
  """(ids, mask), both [rows, longest]."""
  width = max(map(len, sequences))
  ids = np.full((len(sequences), width), filler, np.int64)
  mask = np.zeros_like(ids)
  for row, sequence in enumerate(sequences):
    ids[row, : len(sequence)] = sequence
    mask[row, : len(sequence)] = 1
  return ids, mask


def start(name: str) -> transformers.T5ForConditionalGeneration:
  """A model of that name with its start weights."""
  config = transformers.T5Config(**COMMON, **MODELS[name])
  model = transformers.T5ForConditionalGeneration(config).eval()
  named = dict(model.named_parameters())
  drawn = start_weights.draw({k: tuple(v.shape) for k, v in named.items()})
  with torch.no_grad():
    for name, parameter in named.items():
      parameter.copy_(torch.from_numpy(drawn[name]))
  return model


class OldAdamW(torch.optim.Optimizer):
  """The AdamW that transformers had until 2024 and the paper's code used.

  Written from its formula: epsilon is added to the root of the second moment
  before its bias is corrected. No weight decay.
  """

  def __init__(self, params, *, lr, weight_decay):
    assert not weight_decay
    super().__init__(params, {'lr': lr})
    self._num_steps = 0

  @torch.no_grad()
  def step(self):
    self._num_steps += 1
    corrections = [1 - beta**self._num_steps for beta in (0.9, 0.999)]
    for group in self.param_groups:
      rate = group['lr'] * corrections[1] ** 0.5 / corrections[0]
      for weight in group['params']:
        if not self.state[weight]:
          zeros = torch.zeros_like(weight)
          self.state[weight] = {'first': zeros, 'second': zeros.clone()}
        first, second = self.state[weight].values()
        first.lerp_(weight.grad, 1 - 0.9)
        second.lerp_(weight.grad**2, 1 - 0.999)
        weight -= rate * first / (second.sqrt() + 1e-8)


def train(model, batches, optimizer_class) -> dict[str, np.ndarray]:
  """100 steps; the terms of each, the norm before clipping."""
  optimizer = optimizer_class(
    model.parameters(), lr=LEARNING_RATE, weight_decay=0.0
  )
  schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, STEPS)
  recorded = {
    name: []
    for name in ('pred_loss', 'expl_loss', 'total_loss', 'grad_norm', 'lr')
  }
  for step in range(STEPS):
    losses = [model(**batch(batches, step, task)).loss for task in PREFIXES]
    total = ALPHA * losses[0] + (1 - ALPHA) * losses[1]
    optimizer.zero_grad()
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    values = (*losses, total, norm, schedule.get_last_lr()[0])
    for name, value in zip(recorded, values, strict=True):
      recorded[name].append(torch.as_tensor(value).item())
    optimizer.step()
    schedule.step()
  return {name: np.array(values) for name, values in recorded.items()}


def batch(batches, step, task) -> dict[str, torch.Tensor]:
  """A task's batch, padded to its longest row."""
  return {
    key: torch.from_numpy(
      batches[f'{task}_{key}'][step][
        :, : batches[f'{task}_{side}_len'][step]
      ].astype(np.int64)
    )
    for key, side in (
      ('input_ids', 'input'),
      ('attention_mask', 'input'),
      ('labels', 'label'),
    )
  }


@contextlib.contextmanager
def exact():
  """Float64 also where transformers asks for float32: softmax and norms."""
  with (
    mock.patch.object(torch.Tensor, 'float', torch.Tensor.double),
    mock.patch.object(torch, 'float32', torch.float64),
  ):
    yield


def deviations(recorded, model, double):
  """Lines: how far float32 is from float64, and from the other AdamW."""

  def apart(name, suffix):
    return np.abs(recorded[name] / recorded[name + suffix] - 1).max()

  for name in ('pred_loss', 'expl_loss', 'total_loss', 'grad_norm'):
    first, *_, last = recorded[name]
    yield (
      f'{name} {first:.3f} to {last:.3f}: rounding {apart(name, "_f64"):.1e},'
      f' the other AdamW {apart(name, "_adamw_hf"):.1e}'
    )
  with torch.no_grad():
    single, double = (
      torch.cat([weight.double().ravel() for weight in either.parameters()])
      for either in (model, double)
    )
  off = (single - double).abs()
  yield (
    f'{len(off):,} weights: rounding {off.max():.1e} at most, root mean square'
    f' {off.square().mean().sqrt():.1e}'
  )


def forward_passes(model, tokenizer) -> dict[str, np.ndarray]:
  """Passes over short rows, more rows and rows beyond the bucket limit."""
  examples = [
    (tokenizer(prefix + row[0]).input_ids, tokenizer(row[column]).input_ids)
    for row in rows('test')[:6]
    for column, prefix in enumerate(PREFIXES.values(), 1)
  ]
  bits = np.random.PCG64(0).random_raw(2 * (150 + 140))
  ids = (3 + bits % (PIECES - 3)).astype(np.int64)
  long = [(ids[:150], ids[150:290]), (ids[290:390], ids[390:520])]
  return {
    **renamed('small_{}', forward(model, examples[:4], whole=True)),
    **renamed('large_{}', forward(model, examples[4:], whole=False)),
    **renamed('long_{}', forward(model, long, whole=False)),
  }


def forward(model, examples, *, whole) -> dict[str, np.ndarray]:
  """One padded pass; whole: with all logits and the last hidden states."""
  inputs, targets = zip(*examples, strict=True)
  ids, mask = pad(inputs, 0)
  labels, _ = pad(targets, -100)
  with torch.no_grad():
    found = model(
      input_ids=torch.from_numpy(ids),
      attention_mask=torch.from_numpy(mask),
      labels=torch.from_numpy(labels),
      output_hidden_states=True,
    )
  logits = found.logits
  token_loss = torch.nn.functional.cross_entropy(
    logits.transpose(1, 2), torch.from_numpy(labels), reduction='none'
  )
  top = logits.topk(8)
  recorded = {
    'input_ids': ids.astype(np.int16),
    'attention_mask': mask.astype(np.int16),
    'labels': labels.astype(np.int16),
    'decoder_input_ids': model._shift_right(torch.from_numpy(labels))
    .numpy()
    .astype(np.int16),
    'loss': found.loss.numpy(),
    'token_loss': token_loss.numpy(),
    'logsumexp': logits.logsumexp(-1).numpy(),
    'top8_ids': top.indices.numpy().astype(np.int16),
    'top8_logits': top.values.numpy(),
  }
  if whole:
    recorded |= {
      'encoder_last_hidden': found.encoder_last_hidden_state.numpy(),
      'decoder_last_hidden': found.decoder_hidden_states[-1].numpy(),
      'logits': logits.numpy(),
    }
  return recorded


def safe_inputs(model, double, tokenizer, task):
  """The first eight test inputs whose outputs do not hang on rounding."""
  inputs = [
    tokenizer(PREFIXES[task] + row[0]).input_ids for row in rows('test')
  ]
  single = generate(model, inputs)
  with exact():
    other = generate(double, inputs)
  chosen = []
  for row in range(len(inputs)):
    same = all(
      np.array_equal(single[name][row], other[name][row])
      for name in ('greedy_ids', 'beam4_ids')
    )
    output = single['greedy_ids'][row, 1:].tolist()
    if tokenizer.eos_token_id in output:
      output = output[: output.index(tokenizer.eos_token_id) + 1]
    gaps = [
      *single['greedy_top2_gap'][row, : len(output)],
      *-np.diff(single['beam4_scores'][row]),
    ]
    if same and min(gaps) > SAFE_GAP:
      chosen.append(inputs[row])
  print(f'{task}: {len(chosen)} of {len(inputs)} inputs are safe')
  return chosen[:8]


def generate(model, inputs) -> dict[str, np.ndarray]:
  """Greedy and beam search; ids start with the start token, end in zeros."""
  ids, mask = pad(inputs, 0)
  options = {
    'input_ids': torch.from_numpy(ids),
    'attention_mask': torch.from_numpy(mask),
    'do_sample': False,
    'max_new_tokens': NEW_TOKENS,
    'return_dict_in_generate': True,
  }
  with torch.no_grad():
    greedy = model.generate(num_beams=1, output_logits=True, **options)
    beams = model.generate(
      num_beams=BEAMS,
      num_return_sequences=BEAMS,
      length_penalty=1.0,
      output_scores=True,
      **options,
    )
  logits = torch.stack(greedy.logits, dim=1)
  top = filled(logits.topk(2).values.numpy(), 1, NEW_TOKENS)
  sequences = beams.sequences.reshape(len(inputs), BEAMS, -1).numpy()
  # transformers repeats the end token behind short beams when padding is 0.
  ended = np.cumsum(sequences == 1, axis=-1) - (sequences == 1) > 0
  sequences = np.where(ended, 0, sequences)
  return {
    'input_ids': ids.astype(np.int16),
    'attention_mask': mask.astype(np.int16),
    'greedy_ids': filled(greedy.sequences.numpy(), 1, NEW_TOKENS + 1).astype(
      np.int16
    ),
    'greedy_top1_logit': top[..., 0],
    'greedy_top2_gap': top[..., 0] - top[..., 1],
    'beam4_ids': filled(sequences, 2, NEW_TOKENS + 1).astype(np.int16),
    'beam4_scores': beams.sequences_scores.reshape(-1, BEAMS).numpy(),
  }


def filled(array, axis, length):
  """Zeros added to an axis up to a length."""
  widths = [(0, 0)] * array.ndim
  widths[axis] = (0, length - array.shape[axis])
  return np.pad(array, widths)


def renamed(pattern, arrays):
  return {pattern.format(name): array for name, array in arrays.items()}


if __name__ == '__main__':
  main()
