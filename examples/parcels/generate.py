# SPDX-License-Identifier: Apache-2.0
"""Writes the bundled benchmark: which of two parcels is heavier?

  python examples/parcels/generate.py [--out=examples/parcels]
    [--samples=5] [--weight_errors=0.3]
    [--verdicts] [--logprobs] [--counterfactuals]

Everything here is made up by this program, the completions included: no LLM
was asked, and a student's accuracy on it says nothing about real data. What
the benchmark has in common with real ones is the point of the method: a label
('first' or 'second') tells little about the two things in the parcels, and the
rationale spells out what the label depends on, the weight of each.

Each of 60 things has one of 4 weights, written down nowhere but in rationales.
No pair of things, in either order, occurs in two rows, so test pairs are new;
each of their things is known from other pairs.

The teacher that stands in for an LLM errs at known rates (`ERRORS`): it takes
a thing for lighter or heavier than it is and concludes accordingly, it
concludes wrongly from the right weights, it gives no answer that was asked
for, or it breaks off.

`--samples=5` asks it five times per pair. Its first answer is the one of the
bundled files; the others have errors and wordings of their own. `--verdicts`
asks it of each answer whether it is right, of which it misjudges a tenth.
`--logprobs` has it say how likely each label is by what it takes the weights
for: 1 kg is hardly ever mistaken for more than 9, but 5 often is.

`--counterfactuals` adds what an LLM gives that is asked to argue for the wrong
label (`extract --counterfactuals`): the same words about other weights. Where
its own answer is not the right one there is no third label to argue for.
"""

import argparse
import hashlib
import json
import math
import pathlib
import random
from collections.abc import Iterator

SIZES = {'train': 800, 'validation': 100, 'test': 400}
SEED = 2023
KILOGRAMS = (1, 2, 5, 9)
THINGS = (
  'bag ball banjo barrel basket bell belt bench blanket book boot bottle'
  ' bowl box brick broom bucket candle canoe carpet chain chair clock coat'
  ' crown cup desk doll drum fan flag flute fork guitar hammer hat helmet'
  ' jar kettle key kite knife ladder lamp mask mirror mug needle pan piano'
  ' pillow plate pot quilt radio rope rug saddle towel vase'
).split()
# Share of completions with each kind of error; the rest is right.
ERRORS = {'weight': 0.05, 'slip': 0.01, 'no_answer': 0.01, 'cut': 0.01}
VERDICT_ERRORS = 0.1
SIDES = ('first', 'second')
# Wordings of further samples; the first one's is `rationale`.
WORDINGS = (
  'The first weighs {first} kg and the second {second} kg.',
  'It is {first} kg here and {second} kg there.',
  '{second} kg is the weight of the second, and {first} kg of the first.',
  'One has {first} kg. The other has {second} kg.',
)


def weights(rng: random.Random) -> dict[str, int]:
  """A weight in kg for each thing, all weights equally often."""
  return {
    thing: KILOGRAMS[i % len(KILOGRAMS)]
    for i, thing in enumerate(shuffled(THINGS, rng))
  }


def pairs(known: dict[str, int], rng: random.Random) -> list[tuple[str, str]]:
  """All pairs of different weight, each once, in a random order and turn."""
  unordered = [
    (a, b) for a in THINGS for b in THINGS if a < b and known[a] != known[b]
  ]
  return [
    pair if rng.random() < 0.5 else pair[::-1]
    for pair in shuffled(unordered, rng)
  ]


def heavier(first: int, second: int) -> str:
  """The label."""
  return SIDES[first < second]


def rationale(first: int, second: int) -> str:
  """The reasoning from what the two things weigh."""
  return (
    f'{first} kg is {"more" if first > second else "less"} than {second} kg.'
  )


def completion(
  pair: tuple[str, str],
  known: dict[str, int],
  rng: random.Random,
  *,
  errors: dict[str, float] = ERRORS,
  wording: str | None = None,
) -> tuple[str, bool]:
  """What the teacher writes about a pair, and whether all of it is right."""
  kilograms = [known[thing] for thing in pair]
  error = draw_error(rng, errors)
  if error == 'weight':
    side = pick((0, 1), rng)
    wrong = [w for w in KILOGRAMS if w not in kilograms]
    kilograms[side] = pick(wrong, rng)
  answer = heavier(*kilograms)
  if error == 'slip':
    answer = SIDES[answer == SIDES[0]]
  if error == 'no_answer':
    answer = 'unknown'
  reasons = rationale(*kilograms)
  if wording is not None:
    reasons = wording.format(first=kilograms[0], second=kilograms[1])
  if error == 'cut':
    return reasons.partition(' than')[0].removesuffix('.'), False
  return f'{reasons} So the answer is {answer}.', error is None


def verdict(text: str, right: bool, rng: random.Random) -> dict:
  """A line that says what the teacher thinks of what it wrote."""
  misjudged = rng.random() < VERDICT_ERRORS
  return {
    'kind': 'verdict',
    'about': hashlib.sha256(text.encode()).hexdigest()[:16],
    'text': 'yes' if right != misjudged else 'no',
  }


def label_probs(
  pair: tuple[str, str], known: dict[str, int], weight_errors: float
) -> dict[str, float]:
  """How often the teacher concludes each label, by its errors in weights."""
  kilograms = [known[thing] for thing in pair]
  wrong = [w for w in KILOGRAMS if w not in kilograms]
  chances = {heavier(*kilograms): 1 - weight_errors}
  for side in (0, 1):
    for weight in wrong:
      taken = [*kilograms]
      taken[side] = weight
      label = heavier(*taken)
      share = weight_errors / 2 / len(wrong)
      chances[label] = chances.get(label, 0.0) + share
  return chances


def logprobs(text: str, probs: dict[str, float]) -> dict:
  """The line's field with the tokens of the answer, as extract writes it."""
  logs = {f' {label}': math.log(chance) for label, chance in probs.items()}
  label = text.rpartition(' is')[2].removesuffix('.')
  return {'logprobs': [[label, logs[label], logs]]} if label in logs else {}


def counterfactual(right: str, rng: random.Random) -> dict[str, str]:
  """An answer that argues for the other label, as a completions file has it."""
  wrong = SIDES[right == SIDES[0]]
  kilograms = pick(
    [
      (first, second)
      for first in KILOGRAMS
      for second in KILOGRAMS
      if first != second and heavier(first, second) == wrong
    ],
    rng,
  )
  text = f'{rationale(*kilograms)} So the answer is {wrong}.'
  return {'kind': 'counterfactual', 'hint': wrong, 'text': text}


def draw_error(rng: random.Random, errors: dict[str, float]) -> str | None:
  """A key of errors, or None."""
  drawn = rng.random()
  for error, rate in errors.items():
    if drawn < rate:
      return error
    drawn -= rate
  return None


def files(
  *,
  samples: int = 1,
  weight_errors: float = ERRORS['weight'],
  verdicts: bool = False,
  soft_labels: bool = False,
  counterfactuals: bool = False,
) -> Iterator[tuple[str, list[dict]]]:
  """(file name, its objects) of the whole benchmark."""
  errors = {**ERRORS, 'weight': weight_errors}
  rng, more, judge, other = (random.Random(SEED + n) for n in (0, 1, 2, 2))
  known = weights(rng)
  left = iter(pairs(known, rng))
  for split, size in SIZES.items():
    rows, completions = [], []
    for number in range(size):
      pair = next(left)
      row_id = f'{split}-{number}'
      rows.append(
        {
          'id': row_id,
          'first': pair[0],
          'second': pair[1],
          'heavier': heavier(*(known[thing] for thing in pair)),
        }
      )
      probs = label_probs(pair, known, weight_errors)
      for sample in range(samples):
        name = {'id': row_id, **({'sample': sample} if sample else {})}
        text, right = completion(
          pair,
          known,
          more if sample else rng,
          errors=errors,
          wording=pick(WORDINGS, more) if sample else None,
        )
        notes = logprobs(text, probs) if soft_labels else {}
        completions.append({**name, 'text': text, **notes})
        if verdicts:
          completions.append({**name, **verdict(text, right, judge)})
        if counterfactuals and not sample:
          label = rows[-1]['heavier']
          if f'answer is {label}.' in text:
            completions.append({**name, **counterfactual(label, other)})
    yield f'{split}.jsonl', rows
    yield f'llm/{split}.jsonl', completions


def shuffled(items, rng: random.Random) -> list:
  """A random order. Of Python's generator only random() is promised to stay."""
  return sorted(items, key=lambda _: rng.random())


def pick(items, rng: random.Random):
  """A random item."""
  return items[int(rng.random() * len(items))]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', default=pathlib.Path(__file__).parent)
  parser.add_argument('--samples', type=int, default=1, help='Per pair.')
  parser.add_argument(
    '--weight_errors',
    type=float,
    default=ERRORS['weight'],
    help='Share of completions that take a thing for lighter or heavier.',
  )
  parser.add_argument('--verdicts', action='store_true')
  parser.add_argument('--logprobs', action='store_true')
  parser.add_argument(
    '--counterfactuals',
    action='store_true',
    help='Also a rationale for the wrong label of each pair.',
  )
  given = parser.parse_args()
  out = pathlib.Path(given.out)
  (out / 'llm').mkdir(parents=True, exist_ok=True)
  made = files(
    samples=given.samples,
    weight_errors=given.weight_errors,
    verdicts=given.verdicts,
    soft_labels=given.logprobs,
    counterfactuals=given.counterfactuals,
  )
  for name, objects in made:
    lines = [json.dumps(value) + '\n' for value in objects]
    (out / name).write_text(''.join(lines), encoding='utf-8')
    print(f'{out / name}: {len(lines):,} lines')


if __name__ == '__main__':
  main()
