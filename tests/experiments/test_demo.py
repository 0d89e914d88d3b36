# SPDX-License-Identifier: Apache-2.0
"""The bundled benchmark is what its generator says, and the demo runs."""

import collections
import importlib.util
import json
import pathlib
import re

import pytest

from dsbs_jax.data import parsing, register
from dsbs_jax.data.source import joining, sources
from dsbs_jax.data.source import rows as rows_lib
from dsbs_jax.experiments import demo

FOLDER = pathlib.Path(__file__).resolve().parents[2] / 'examples' / 'parcels'
SPLITS = ('train', 'validation', 'test')
WEIGHED = re.compile(r'(\d+) kg is (more|less) than (\d+) kg\.')


@pytest.fixture(scope='module')
def generator():
  spec = importlib.util.spec_from_file_location(
    'generate', FOLDER / 'generate.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def examples():
  """split -> its joined examples, by the real reader."""
  known = register.benchmark('parcels')
  loaded = {
    split: sources.Examples(known, str(FOLDER), split=split) for split in SPLITS
  }
  return {split: (list(found), found.counts) for split, found in loaded.items()}


def rows(split: str) -> list[dict]:
  lines = (FOLDER / f'{split}.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_the_generator_reproduces_every_file_byte_for_byte(generator):
  made = {}
  for name, objects in generator.files():
    made[name] = ''.join(json.dumps(value) + '\n' for value in objects).encode()
  kept = {
    path.relative_to(FOLDER).as_posix(): path.read_bytes()
    for path in FOLDER.rglob('*.jsonl')
  }
  assert made == kept
  assert sum(map(len, kept.values())) < 1_000_000


def test_counterfactuals_argue_for_the_other_label(generator):
  known = register.benchmark('parcels')
  plain = dict(generator.files())
  for name, objects in generator.files(counterfactuals=True):
    argued = [line for line in objects if line.get('kind') == 'counterfactual']
    assert [line for line in objects if line not in argued] == plain[name]
    if not name.startswith('llm/'):
      continue
    labels = {row['id']: row['heavier'] for row in plain[name[4:]]}
    assert len(argued) > 0.9 * len(labels)
    for line in argued:
      said = known.parse(line['text'])
      first, second = (int(word) for word in re.findall(r'\d+', said.rationale))
      assert said.label == line['hint'] == generator.heavier(first, second)
      assert said.label != labels[line['id']]


def test_labels_follow_from_the_weights_that_most_rationales_give(examples):
  votes = collections.defaultdict(collections.Counter)
  for split, (found, _) in examples.items():
    for row, example in zip(rows(split), found, strict=True):
      assert row['id'] == example.example_id
      if match := WEIGHED.fullmatch(example.rationale):
        votes[row['first']][int(match[1])] += 1
        votes[row['second']][int(match[3])] += 1
  assert len(votes) == 60
  weight = {thing: count.most_common(1)[0][0] for thing, count in votes.items()}
  for split in SPLITS:
    for row in rows(split):
      first, second = weight[row['first']], weight[row['second']]
      assert first != second
      assert row['heavier'] == ('first' if first > second else 'second'), row


def test_no_pair_of_things_occurs_twice_in_any_order_or_split():
  pairs = [
    frozenset((row['first'], row['second']))
    for split in SPLITS
    for row in rows(split)
  ]
  assert len(pairs) == len(set(pairs)) == 1300
  assert all(len(pair) == 2 for pair in pairs)


def test_labels_are_balanced_and_every_thing_is_in_train():
  for split in SPLITS:
    firsts = sum(row['heavier'] == 'first' for row in rows(split))
    assert 0.4 < firsts / len(rows(split)) < 0.6
  things = {row[side] for row in rows('train') for side in ('first', 'second')}
  assert len(things) == 60


def test_the_teacher_errs_at_about_the_documented_rates(generator, examples):
  statuses, wrong, number = collections.Counter(), 0, 0
  for found, counts in examples.values():
    statuses.update(counts.statuses)
    number += len(found)
    wrong += sum(
      example.status == joining.PARSED and not example.correct
      for example in found
    )
  rates = generator.ERRORS
  assert set(statuses) == {
    joining.PARSED,
    rows_lib.OUTSIDE_LABELS,
    parsing.NO_MARKER,
  }
  # Four standard errors of a binomial rate of about 1 % in 1,300 rows.
  assert statuses[rows_lib.OUTSIDE_LABELS] / number == pytest.approx(
    rates['no_answer'], abs=0.011
  )
  assert statuses[parsing.NO_MARKER] / number == pytest.approx(
    rates['cut'], abs=0.011
  )
  # A weight taken wrong need not change which one is heavier.
  assert 0.01 < wrong / number < rates['weight'] + rates['slip'] + 0.01


def test_a_completion_that_broke_off_has_no_label_and_no_marker(examples):
  found, _ = examples['train']
  broken = [e for e in found if e.status == parsing.NO_MARKER]
  assert broken
  assert all(e.llm_label == '' and not e.correct for e in broken)


def test_a_short_demo_prepares_trains_explains_and_compares(
  tmp_path, capsys, monkeypatch
):
  # One encoder layer, and one shape of all evaluated batches, to compile less.
  smaller = 'NUM_ENCODER_LAYERS = 1', 'EVAL_BATCH_SIZE = 100'
  monkeypatch.setattr(demo, 'RECIPE', (*demo.RECIPE, *smaller))
  settings = demo.Demo(
    out=str(tmp_path / 'runs'),
    cache=str(tmp_path / 'cache'),
    fractions=(0.25,),
    seeds=(0,),
    steps=1,
  )
  assert demo.run(settings) == 0
  shown = capsys.readouterr().out
  for part in ('1/4', '2/4', '3/4', '4/4', 'Standard finetuning', 'Gold'):
    assert part in shown
  page = tmp_path / 'runs' / 'report' / 'report.html'
  assert str(page) in shown
  assert 'Step-by-step' in page.read_text()
  run = tmp_path / 'runs' / 'parcels_gt_dsbs-nano-f0.25-s0'
  (written,) = run.glob('predictions/parcels_rationale-test-*.jsonl')
  lines = [json.loads(line) for line in written.read_text().splitlines()]
  assert [line['id'] for line in lines] == [row['id'] for row in rows('test')]
  assert sum(bool(WEIGHED.match(line['target'])) for line in lines) > 390

  changed = {p: p.stat().st_mtime_ns for p in run.glob('checkpoint_*')}
  assert changed
  monkeypatch.setattr(demo.report, 'report', lambda _: page)  # drawn above
  assert demo.run(settings) == 0  # finished runs are kept, not trained again
  assert {p: p.stat().st_mtime_ns for p in run.glob('checkpoint_*')} == changed
  assert '2 finished' in capsys.readouterr().err
