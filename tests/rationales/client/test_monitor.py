# SPDX-License-Identifier: Apache-2.0
"""What is shown agrees with what happened."""

import io

import pytest

from dsbs_jax.runtime import progress
from rationales.client import monitor
from rationales.record import calls, completions_file, costs
from tests.rationales import sums


class Clock:
  seconds = 10.0

  def __call__(self):
    return self.seconds


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def out():
  return io.StringIO()


@pytest.fixture
def tracker():
  prices = costs.Prices(100.0, 1000.0)
  return costs.CostTracker(prices, max_tokens=50, answer_bytes=80)


@pytest.fixture
def counts(clock, out, tracker):
  tokens = costs.Tokens(10_000, 2000)
  estimate = costs.Estimate(calls=100, samples=100, tokens=tokens)
  return monitor.Monitor(
    sums.BENCHMARK,
    estimate,
    tracker,
    line=progress.ProgressLine(out, clock=clock),
    clock=clock,
  )


def _call(number, gold=None):
  return calls.Call(
    kind=completions_file.COMPLETION,
    example_id=f'train-{number}',
    samples=(0,),
    content='',
    prompt_hash='0' * 16,
    prompt_bytes=400,
    gold=sums.row(number)['a'] if gold is None else gold,
  )


def _answer(text, reason='stop'):
  return calls.Answer((text,), (reason,), None, 'teacher', ({},))


def test_counts_rates_and_shares(counts, clock):
  for number in range(20):  # two wrong, two unreadable
    text = sums.answer(sums.row(number)['q'], 0)
    counts.answered(_call(number), _answer(text))
  clock.seconds += 4
  text = counts.text()
  assert text.startswith('20 of 100 | 5.0/s | ETA 0:00:16 | tokens 0+0')
  assert 'parsed 90.0%' in text and 'correct 80.0%' in text
  assert 'failed' not in text and not counts.any_failed
  counts.retried('429: slow down')
  counts.failed(_call(50), '400: no')
  assert counts.text().endswith('retried 1 | failed 1') and counts.any_failed
  clock.seconds += 3600
  assert 'ETA 4:00:16' in counts.text()


def test_accuracy_is_left_out_if_labels_are_unknown(counts):
  counts.answered(_call(1, gold=''), _answer('The answer is 4.'))
  assert 'correct' not in counts.text() and 'parsed' in counts.text()


def test_money_is_an_estimate_until_twenty_answers(counts, tracker):
  assert 'money 0.0000 of 3.0000 (estimate)' in counts.text()
  for number in range(20):  # half of the guess for prompts, twice the answer
    usage = {'prompt_tokens': 50, 'completion_tokens': 40}
    tracker.record_answer(_call(number), usage)
    counts.answered(_call(number), _answer('x'))
  # Paid: 20 * (50 * 100 + 40 * 1000) / 1e6; 80 % of 4.5 are left.
  assert 'money 0.9000 of 4.5000 |' in counts.text()


def test_completions_that_met_the_limit_are_counted(counts):
  for reason in ('stop', 'length', 'stop', 'stop'):
    counts.answered(_call(1), _answer('x', reason))
  assert 'cut 25.0%' in counts.text()
  assert counts.summary()[0].startswith('1 completions were cut')


def test_the_summary_names_failed_rows_and_counts_the_rest(counts, out):
  for number in range(25):
    counts.failed(_call(number), f'400: row {number} \x1b[2J')
  counts.retried('no answer within 2 s')
  counts.finish()
  text, *lines = out.getvalue().splitlines()
  assert text.startswith('0 of 100 | ')
  assert lines[0] == 'retried 1 times: no answer within 2 s'
  assert lines[1].startswith('25 calls failed for good')
  assert lines[2] == '  train-0: 400: row 0 \\x1b[2J' and len(lines) == 23
  assert lines[-1] == '  and 5 more'


def test_in_a_log_a_line_comes_now_and_then(counts, clock, out):
  for _ in range(50):
    clock.seconds += 1
    counts.tick()
  assert out.getvalue().count('0 of 100') == 2
