# SPDX-License-Identifier: Apache-2.0
"""A small prepared dataset of invented sums, and a vocabulary trained on it."""

import dataclasses
import random

from dsbs_jax.data import benchmark
from dsbs_jax.data.prepared import dataset_writer
from dsbs_jax.data.vocabulary import vocabulary_files
from dsbs_jax.preparing import vocabulary_training

NAMES = ('Ann', 'Bo', 'Café Zoë', 'Dr. Ng')
THINGS = ('pens', 'nuts', 'eggs', 'ﬁne plums', 'caps')
SIZES = {'train': 45, 'validation': 7, 'test': 10}


def examples(split, *, name='cqa', number=None):
  """Invented examples; every ninth has no rationale, lengths differ."""
  draw = random.Random(f'{name} {split}')
  made = []
  for i in range(SIZES[split] if number is None else number):
    who, what = draw.choice(NAMES), draw.choice(THINGS)
    first, second = draw.randrange(2, 99), draw.randrange(2, 9)
    more = ' '.join(draw.choices(THINGS, k=draw.randrange(12)))
    question = f'{who} has {first} {what}, gets {second}.\nSeen: {more}'
    if name == 'anli1':
      question = f'{who} has {first} {what}.</s>{who} has {more} too.'
    said = f'{who} had {first}, and {second} more make it {first + second}.'
    made.append(
      benchmark.Example(
        index=3 * i + 1,
        example_id=f'{split}-{i}',
        input=question,
        gt_label=str(first + second),
        llm_label=str(first + second + (i % 3)),
        rationale=' ' if i % 9 == 4 else said,
        status='no_marker' if i % 9 == 4 else 'parsed',
      )
    )
  return made


def several(split='train', *, name='cqa', number=None):
  """The same examples; row i has i % 4 more rationales beside its own."""
  made = []
  for i, example in enumerate(examples(split, name=name, number=number)):
    own = benchmark.Rationale(
      example.rationale, example.llm_label, agrees=True, gt='for', llm='for'
    )
    more = [
      benchmark.Rationale(
        f'{example.input.split()[0]} gets {k} and more, so {k * "many "}now.',
        example.gt_label,
        agrees=k % 2 == 1,
        gt='against' if k > 1 else 'unclear',
        llm='for' if k > 2 else 'against',
      )
      for k in range(1, 1 + i % 4)
    ]
    kept = (*more[:1], own, *more[1:]) if more else ()
    made.append(dataclasses.replace(example, rationales=kept))
  return made


def write(folder, *, name='cqa', splits=tuple(SIZES), **options):
  """Writes a prepared dataset of that name."""
  return dataset_writer.write(
    name,
    {split: examples(split, name=name) for split in splits},
    data_dir=folder,
    about={'source': 'invented'},
    **options,
  )


def judged(examples):
  """The same: verdicts on two of three, counterfactuals on two others."""
  return [
    dataclasses.replace(
      example,
      verdict=('yes', 'no', '')[number % 3],
      counterfactual=('7', f'Ann eats {number}, so 7.') if number % 3 else (),
    )
    for number, example in enumerate(examples)
  ]


def write_judged(folder, examples, *, name='cqa'):
  """Writes a prepared train split with verdicts and counterfactuals."""
  return dataset_writer.write(
    name,
    {'train': judged(examples)},
    data_dir=folder,
    about={'source': 'invented'},
    counts=lambda split: {
      'counts': {'verdicts': {'yes': 15, 'no': 15}, 'counterfactuals': 30}
    },
  )


def vocabulary(folder):
  """The path of a small vocabulary of these texts."""
  texts = [
    text
    for e in examples('train')
    for text in (e.input, e.rationale, e.gt_label)
  ]
  path = folder / 'sums.model'
  vocabulary_files.write_file(path, vocabulary_training.train(texts, size=120))
  return str(path)
