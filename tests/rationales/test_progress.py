# SPDX-License-Identifier: Apache-2.0
"""What is shown agrees with what happened."""

import io

import rich.console

from rationales import bill, calls, progress, records, worklist
from tests.rationales import sums


def _call(number, gold=None):
  return calls.Call(
    kind=records.COMPLETION,
    example_id=f'train-{number}',
    samples=(0,),
    content='',
    prompt_hash='0' * 16,
    prompt_bytes=400,
    gold=sums.row(number)['a'] if gold is None else gold,
  )


def _answer(text, reason='stop'):
  return calls.Answer((text,), (reason,), None, 'teacher', 'test')


def _watch(terminal=False, prices=None):
  survey = worklist.Survey(
    calls=100, samples=100, tokens=bill.Tokens(10_000, 2000)
  )
  account = bill.Bill(prices or bill.Prices(), max_tokens=50, answer_bytes=80)
  console = rich.console.Console(
    file=io.StringIO(), force_terminal=terminal, width=200, soft_wrap=True
  )
  return progress.Progress(sums.BENCHMARK, survey, account, console), account


def test_counts_rates_and_shares(monkeypatch):
  clock = [10.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: clock[0])
  watch, _ = _watch()
  for number in range(20):  # two wrong, two unreadable
    text = sums.answer(sums.row(number)['q'], 0)
    watch.answered(_call(number), _answer(text))
  clock[0] += 4
  line = watch.line()
  assert line.startswith('20 of 100 | 5.0/s | left 0:00:16 | tokens 0+0')
  assert 'parsed 90.0%' in line and 'right 80.0%' in line
  assert 'money' not in line and 'failed' not in line
  watch.fault('429: slow down')
  watch.failed(_call(50), '400: no')
  assert watch.line().endswith('retried 1 | failed 1')
  clock[0] += 3600
  assert 'left 4:00:16' in watch.line()


def test_accuracy_is_silent_where_labels_are_unknown():
  watch, _ = _watch()
  watch.answered(_call(1, gold=''), _answer('The answer is 4.'))
  assert 'right' not in watch.line() and 'parsed' in watch.line()


def test_money_is_an_estimate_until_twenty_answers(monkeypatch):
  watch, account = _watch(prices=bill.Prices(100.0, 1000.0))
  assert 'money 0.0000 of 3.0000 (estimate)' in watch.line()
  for number in range(20):  # half of the guess for prompts, twice the answer
    account.answer(
      _call(number), {'prompt_tokens': 50, 'completion_tokens': 40}
    )
    watch.answered(_call(number), _answer('x'))
  # Paid: 20 * (50 * 100 + 40 * 1000) / 1e6; 80 % of 4.5 are left.
  assert 'money 0.9000 of 4.5000 |' in watch.line()


def test_completions_that_met_the_limit_are_told():
  watch, _ = _watch()
  for reason in ('stop', 'length', 'stop', 'stop'):
    watch.answered(_call(1), _answer('x', reason))
  assert 'cut 25.0%' in watch.line()
  assert watch.summary()[0].startswith('1 completions were cut')


def test_the_summary_names_failed_rows_and_counts_the_rest():
  watch, _ = _watch()
  for number in range(25):
    watch.failed(_call(number), f'400: row {number}')
  watch.fault('no answer within 2 s')
  lines = watch.summary()
  assert lines[0] == 'retried 1: no answer within 2 s'
  assert lines[1].startswith('25 calls failed for good')
  assert lines[2] == '  train-0: 400: row 0' and len(lines) == 23
  assert lines[-1] == '  and 5 more'


def test_a_terminal_sees_the_line_while_it_runs():
  watch, _ = _watch(terminal=True)
  with watch:
    watch._live.refresh()
    assert '0 of 100' in watch._console.file.getvalue()


def test_without_a_terminal_a_line_comes_now_and_then(monkeypatch):
  clock = [10.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: clock[0])
  watch, _ = _watch()
  with watch:
    for _ in range(21):
      clock[0] += 1
      watch.tick()
    printed = watch._console.file.getvalue().count('0 of 100')
  assert printed == 1
