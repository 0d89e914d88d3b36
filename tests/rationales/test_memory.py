# SPDX-License-Identifier: Apache-2.0
"""Memory hardly grows with the number of rows, on any path through them."""

import json

import pytest

from rationales.record import completions_file
from tests.rationales import sums

# What a row may cost: 100 MiB for half a million of them, and what varies
# from one run to the next.
BYTES_PER_ROW = 200
NOISE_MIB = 4


def _recorded(path, num_rows):
  """A completions file to replay, as an earlier run would have left it."""
  with path.open('w') as file:
    for index in range(num_rows):
      line = {
        'kind': completions_file.COMPLETION,
        'id': f'train-{index}',
        'sample': 0,
        'text': sums.answer(sums.row(index)['q'], 0),
        'finish_reason': 'stop',
        'usage': None,
        'model': 'palm',
        'prompt_hash': '0',
      }
      file.write(json.dumps(line) + '\n')
  return path


def _peaks(num_rows, extract, out, tmp_path):
  """Peak memory of a first run, of a rerun, and of the second pass."""
  replayed = _recorded(tmp_path / f'{num_rows}.jsonl', num_rows)
  flags = ['--backend=replay', f'--replay={replayed}']
  first = extract(num_rows, *flags)
  assert first.status == 0, first.output
  peaks = [first.peak_mib]
  with out.open() as file:
    assert sum('"completion"' in line for line in file) == num_rows
  again = extract(None, *flags)
  assert again.status == 0
  peaks.append(again.peak_mib)
  second = extract(None, '--backend=replay', f'--replay={out}', '--rationalize')
  assert f'of {num_rows // 5:,}' in second.output, second.output
  peaks.append(second.peak_mib)
  out.unlink()
  return peaks


@pytest.mark.parametrize(
  'few, many',
  [(300, 3000), pytest.param(5000, 500_000, marks=pytest.mark.long)],
)
def test_memory_is_flat(few, many, extract, out, tmp_path):
  small = _peaks(few, extract, out, tmp_path)
  large = _peaks(many, extract, out, tmp_path)
  print(f'peak MiB for {few:,} rows {small}, for {many:,} rows {large}')
  for before, after in zip(small, large, strict=True):
    assert after - before < BYTES_PER_ROW * many / 2**20 + NOISE_MIB
