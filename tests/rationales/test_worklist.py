# SPDX-License-Identifier: Apache-2.0
"""What is asked again says which answer it replaces: the newest."""

import json

from rationales import calls, completions_file, prompt, worklist
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
  (first,) = todo.first_pass(completions_file.Index().freeze(), path)
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
  index, offsets = completions_file.Index(), []
  for offset, record in completions_file.scan(path):
    index.add(offset, record)
    offsets.append(offset)
  (again,) = todo.first_pass(index.freeze(), path)
  assert (again.samples, again.replaces) == ((0, 1, 2), offsets[-1])
