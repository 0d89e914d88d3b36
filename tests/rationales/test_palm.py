# SPDX-License-Identifier: Apache-2.0
"""The published completions, served over HTTP, make the published data set.

The server answers every question with what PaLM said to it. What `extract`
then writes, joined by id, must give the same examples, field by field, as the
archive's own files, joined by position.
"""

import dataclasses

import pytest

from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import register
from dsbs_jax.data.source import archive, file_layout, sources
from rationales import prompt
from tests.rationales import command


def _published(name, source, split):
  """Question as a prompt asks it -> PaLM's completion; and the benchmark."""
  with register.without_seqio():
    benchmark = benchmark_lib.find(name)
  shown = prompt.load(prompt.FOLDER / f'{name}.json')
  opened = archive.open_archive(source)
  texts = file_layout.beside_rows(
    benchmark,
    opened,
    split,
    teacher=file_layout.PALM,
    parts=file_layout.parts(benchmark, opened, split),
  )
  answers = {}
  for row in sources.read_rows(benchmark, source, split):
    fields = {**row.fields, 'rendered': row.input}
    question = prompt.chat_messages(shown, fields)[-1]['content']
    [sample] = texts.take(row)
    assert question not in answers
    answers[question] = sample.text
  return benchmark, answers


def _extract_and_compare(name, split, source, server, spawner, folder):
  """Returns the counts of the split's whole file."""
  benchmark, answers = _published(name, source, split)
  server.teach(answers)
  out, log = folder / f'{split}.jsonl', folder / 'log.txt'
  flags = [
    f'--benchmark={name}',
    f'--source={source}',
    f'--split={split}',
    f'--base_url={server.base_url}',
    '--model=palm-540b',
    f'--out={out}',
  ]
  done = command.start(spawner, flags, log).wait()
  assert done.status == 0, done.output
  assert len(command.answers(out)) == len(answers)
  whole = None
  splits = [split]
  if split == 'train' and benchmark.derive_validation:
    splits.append('validation')
  for part in splits:
    ours = sources.Examples(benchmark, source, split=part, completions=out)
    theirs = sources.Examples(benchmark, source, split=part)
    pairs = list(zip(ours, theirs, strict=True))
    assert pairs
    for our, their in pairs:
      assert dataclasses.asdict(our) == dataclasses.asdict(their)
    assert set(ours.counts.models) == {'palm-540b'}
    assert ours.counts == dataclasses.replace(
      theirs.counts, models=ours.counts.models
    )
    whole = whole or ours.file_counts
  return whole


# Accuracy of the labels as parsed, and completions without a usable part.
CASES = [
  ('svamp', 'test', 74.00, 198),
  pytest.param('svamp', 'train', 73.25, 787, marks=pytest.mark.long),
  pytest.param('cqa', 'test', 77.23, 1221, marks=pytest.mark.long),
  pytest.param('cqa', 'train', 74.26, 9738, marks=pytest.mark.long),
]


@pytest.mark.parametrize('name, split, accuracy, usable', CASES)
def test_http_gives_the_archives_data_set(
  name, split, accuracy, usable, server, spawner, shared_dir, tmp_path
):
  source = shared_dir / 'data' / 'datasets'
  counts = _extract_and_compare(name, split, source, server, spawner, tmp_path)
  assert counts.usable == usable
  assert counts.accuracy == pytest.approx(accuracy, abs=0.005)
