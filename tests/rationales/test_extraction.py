# SPDX-License-Identifier: Apache-2.0
"""The command against a real server over real sockets."""

import random
import time

import pytest

from rationales import records
from tests.rationales import command, sums, teaching


def assert_one_good_line_per_row(path, num_rows, samples=1):
  """Each row has each sample once, and the answer is about this very row."""
  found = {}
  for line in command.answers(path):
    slot = line['id'], line['sample']
    assert slot not in found, slot
    found[slot] = line['text']
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
  assert server.stats()['requests'] == 50
  before = out.read_bytes()
  assert extract().status == 0
  assert out.read_bytes() == before
  assert server.stats()['requests'] == 50


def _late(stats, path):
  """Good answers that came after the timeout, on a machine that is busy.

  Their calls are rightly made again, and rightly counted as paid twice.
  """
  lost = command.lines(path, records.LOST)
  timeouts = sum('no answer within' in line['reason'] for line in lost)
  return max(0, timeouts - stats['faults'].get('hang', 0))


def _flaky(num_rows, server, extract, out):
  """Runs at 20 % faults until nothing is left to do."""
  server.configure(faults=0.2, seed=1)
  done = extract(num_rows, '--timeout=2', '--attempts=20', seconds=1500)
  assert done.status == 0, done.output
  assert_one_good_line_per_row(out, num_rows)
  return server.stats()


def test_faults_leave_exactly_one_good_line_per_row(server, extract, out):
  stats = _flaky(400, server, extract, out)
  assert set(stats['faults']) == set(teaching.FAULTS)
  assert stats['paid_twice'] <= _late(stats, out)


def _killed(num_rows, kills, *, delay, server, extract, out):
  """Kills the command at random moments, each time after some new answers.

  Returns:
    The server's count, and of each kill: calls that were in flight.
  """
  server.configure(faults=0.2, seed=2, delay=delay)
  flags = ['--timeout=3', '--attempts=20', '--concurrency=16']
  draw = random.Random(3)
  in_flight = []
  sums_written = num_rows
  for _ in range(kills):
    asked = server.stats()['requests']
    running = extract(sums_written, *flags, wait=False)
    sums_written = None
    goal = asked + draw.randint(5, num_rows // (kills + 1))
    while server.stats()['requests'] < goal:
      assert running.process.is_alive(), running.output
      time.sleep(0.01)
    time.sleep(draw.random() * 0.2)
    killed_at = time.time()
    running.kill()
    time.sleep(0.3)
    cuts = server.stats()['cuts']
    in_flight.append(sum(busy for at, busy in cuts if at >= killed_at))
  done = extract(None, *flags, seconds=1500)
  assert done.status == 0, done.output
  assert_one_good_line_per_row(out, num_rows)
  return server.stats(), in_flight


def test_kill_9_loses_at_most_the_calls_in_flight(server, extract, out):
  stats, in_flight = _killed(
    400, 3, delay=0.03, server=server, extract=extract, out=out
  )
  assert max(in_flight) <= 16
  assert stats['paid_twice'] <= sum(in_flight) + _late(stats, out)
  print(f'paid twice {stats["paid_twice"]}, in flight {in_flight}')


@pytest.mark.long
def test_5000_rows_at_20_percent_faults(server, extract, out):
  stats = _flaky(5000, server, extract, out)
  print(f'faults {stats["faults"]}, requests {stats["requests"]}')
  assert stats['paid_twice'] <= _late(stats, out)
  assert stats['paid'] - stats['paid_twice'] == 5000


@pytest.mark.long
def test_5000_rows_at_20_percent_faults_and_ten_kills(server, extract, out):
  stats, in_flight = _killed(
    5000, 10, delay=0.01, server=server, extract=extract, out=out
  )
  print(f'paid twice {stats["paid_twice"]}, in flight {in_flight}')
  assert max(in_flight) <= 16
  assert stats['paid_twice'] <= sum(in_flight) + _late(stats, out)
