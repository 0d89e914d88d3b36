# SPDX-License-Identifier: Apache-2.0
"""The command against a real server over real sockets."""

import pytest

from rationales.record import completions_file
from tests.rationales import command, sums, teaching


def assert_one_good_line_per_row(path, num_rows, samples=1):
  """Each row has each sample once, and the answer is about this very row."""
  found = {}
  for line in command.answers(path):
    key = line['id'], line['sample']
    assert key not in found, key
    found[key] = line['text']
  assert len(found) == num_rows * samples
  for index in range(num_rows):
    a, b = sums.row(index)['q'][8:-1].split(' + ')
    for sample in range(samples):
      text = found[f'train-{index}', sample]
      assert f': {a} and {b} are' in text, (index, text)


def test_every_row_is_answered_once_and_a_rerun_asks_nothing(
  server, extract, out
):
  done = extract(50)
  assert done.status == 0, done.output
  assert_one_good_line_per_row(out, 50)
  assert server.stats()['answered'] == 50
  before = out.read_bytes()
  assert extract().status == 0
  assert out.read_bytes() == before
  assert server.stats()['answered'] == 50


@pytest.mark.parametrize(
  'num_rows', [150, pytest.param(5000, marks=pytest.mark.long)]
)
def test_faults_leave_exactly_one_good_line_per_row(
  num_rows, server, extract, out
):
  server.configure(faults=0.2, seed=1)
  done = extract(num_rows, '--attempts=20', '--timeout=3000')
  assert done.status == 0, done.output
  assert_one_good_line_per_row(out, num_rows)
  stats = server.stats()
  assert set(stats['faults']) == set(teaching.FAULTS)
  assert stats['paid'] == num_rows and not stats['paid_twice']


def test_calls_that_hang_are_made_again(server, extract, out):
  server.configure(faults=0.3, kinds=['hang'])
  done = extract(12, '--attempts=1000', '--timeout=0.5')
  assert done.status == 0, done.output
  assert_one_good_line_per_row(out, 12)
  lost = command.lines(out, completions_file.LOST)
  assert len(lost) >= server.stats()['faults']['hang'] > 0
  assert all('no answer within 0.5 s' in line['reason'] for line in lost)


@pytest.mark.parametrize(
  'num_rows, kills', [(150, 2), pytest.param(5000, 10, marks=pytest.mark.long)]
)
def test_kill_9_loses_the_calls_in_flight_and_no_other(
  num_rows, kills, server, extract, out
):
  kinds = ['error_500', 'reset', 'truncated']
  server.configure(faults=0.2, kinds=kinds, seed=2)
  sums.write(out.parents[1], num_rows)
  flags = ['--attempts=20', '--timeout=3000', '--concurrency=16']
  for number in range(1, kills + 1):
    # The server charges for more calls than it answers.
    stop = server.stats()['calls'] + num_rows // (kills + 1)
    server.change(hold_after=stop)
    running = extract(None, *flags, wait=False)
    server.wait(held=16)
    running.kill()
    assert server.wait(idle=1)['lost'] == 16 * number
  server.change(hold_after=None)
  done = extract(None, *flags)
  assert done.status == 0, done.output
  assert_one_good_line_per_row(out, num_rows)
  assert server.stats()['paid_twice'] == 16 * kills
