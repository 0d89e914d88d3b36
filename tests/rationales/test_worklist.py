# SPDX-License-Identifier: Apache-2.0
"""What is asked again says which answer it replaces: the newest."""

import dataclasses
import json

from dsbs_jax.data.source import completions
from rationales import prompt, verdicts, worklist
from rationales.record import calls, completions_file
from tests.rationales import sums


def test_a_call_replaces_the_newest_of_its_samples_answers(tmp_path):
  todo = worklist.Worklist(
    benchmark=sums.BENCHMARK,
    source=str(sums.write(tmp_path, 1)),
    split='train',
    prompt=prompt.load(tmp_path / 'sums_prompt.json'),
    endpoint=calls.CHAT,
    samples=3,
    samples_per_call=3,
    retry=worklist.ALL,
  )
  path = tmp_path / 'out.jsonl'
  (first,) = todo.first_pass(completions_file.Index(path).freeze())
  assert (first.samples, first.replaces) == ((0, 1, 2), -1)
  line = {
    'kind': completions_file.COMPLETION,
    'id': first.example_id,
    'text': 'It is 0.',
    'prompt_hash': first.prompt_hash,
  }
  written = [line | {'sample': sample} for sample in (0, 1, 2)]
  written.append(line | {'sample': 1, 'retry': True})
  path.write_text(''.join(json.dumps(each) + '\n' for each in written))
  index, offsets = completions_file.Index(path), []
  for offset, record in completions_file.scan(path):
    index.add(offset, record)
    offsets.append(offset)
  (again,) = todo.first_pass(index.freeze())
  assert (again.samples, again.replaces) == ((0, 1, 2), offsets[-1])


def test_a_row_is_not_shown_its_own_answer(tmp_path):
  folder = sums.write(tmp_path, 4)
  row, other = sums.row(0), sums.row(1)
  shown = prompt.load(tmp_path / 'sums_prompt.json')
  exemplar = dataclasses.replace(shown.exemplars[0], input={'q': row['q']})
  shown = dataclasses.replace(shown, exemplars=(exemplar, *shown.exemplars[1:]))
  todo = worklist.Worklist(
    benchmark=sums.BENCHMARK,
    source=str(folder),
    split='train',
    prompt=shown,
    endpoint=calls.COMPLETIONS,
  )
  nothing = completions_file.Index(tmp_path / 'out.jsonl').freeze()
  first, second, *_ = todo.first_pass(nothing)
  assert first.content.count(row['q']) == 1
  assert first.content.count('\nA:') == len(shown.exemplars)
  assert second.content.count('\nA:') == 1 + len(shown.exemplars)
  # Files of before are continued: the hash is that of all exemplars.
  whole = prompt.completion_text(shown, {**row, 'rendered': row['q']})
  assert first.prompt_hash == prompt.text_hash(f'completions\0{whole}')
  assert first.prompt_bytes == len(first.content.encode())
  assert prompt.without_answer(shown, other | {'rendered': ''}) is shown


def test_further_passes_read_all_samples_of_the_file(tmp_path):
  todo = worklist.Worklist(
    benchmark=sums.BENCHMARK,
    source=str(sums.write(tmp_path, 2)),
    split='train',
    prompt=prompt.load(tmp_path / 'sums_prompt.json'),
    endpoint=calls.CHAT,
  )
  path = tmp_path / 'out.jsonl'
  lines = [
    {
      'kind': completions_file.COMPLETION,
      'id': f'train-{index}',
      'sample': sample,
      'text': f'A \ud83d. The answer is {label}.',
      'prompt_hash': '0',
    }
    for index in range(2)
    for sample, label in enumerate((sums.row(0)['a'], '9', '9'))
  ]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  index = completions_file.Index(path)
  for offset, record in completions_file.scan(path):
    index.add(offset, record)
  index.freeze()
  # The first sample of train-0 is right, and what most of them say is not.
  again = [call.example_id for call in todo.second_pass(index)]
  assert again == ['train-0', 'train-1']
  judged = list(verdicts.VerdictPass(todo).todo(index))
  assert [call.samples for call in judged] == [(0,), (1,), (2,)] * 2
  assert judged[0].content[0]['content'].count('A \ufffd.') == 1
  read = completions.ById(str(path), lambda: path.open('rb'))
  (row, _) = todo.rows()
  samples = read.take(row)
  assert completions.digest(samples[0].text) == judged[0].about
