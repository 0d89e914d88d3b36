# SPDX-License-Identifier: Apache-2.0
"""Estimates, payments and the budget, against sums done by hand."""

import random

import pytest

from dsbs_jax import contract
from rationales.record import calls, completions_file, costs


def _call(prompt_bytes=400, samples=1, chat=False):
  return calls.Call(
    kind=completions_file.COMPLETION,
    example_id='x',
    samples=tuple(range(samples)),
    content=[{'role': 'user', 'content': ''}] * 3 if chat else '',
    prompt_hash='0' * 16,
    prompt_bytes=prompt_bytes,
    gold='',
  )


def _usage(prompt, completion):
  return {'prompt_tokens': prompt, 'completion_tokens': completion}


def _tracker(prices=None, max_tokens=100):
  prices = prices or costs.Prices(2.0, 10.0)
  return costs.CostTracker(prices, max_tokens=max_tokens, answer_bytes=80)


def test_an_estimate_is_bytes_over_four_and_the_exemplars_mean():
  tracker = _tracker()
  assert tracker.estimate(_call()) == costs.Tokens(100, 20)
  assert tracker.estimate(_call(chat=True)) == costs.Tokens(124, 20)
  assert tracker.estimate(_call(samples=3)) == costs.Tokens(100, 60)
  assert tracker.upper_bound(_call(samples=3)) == costs.Tokens(400, 300)
  assert tracker.prices.cost(costs.Tokens(1e6, 2e6)) == 22.0
  assert _tracker(max_tokens=5).estimate(_call()).completion == 5


def test_twenty_answers_calibrate_the_estimate():
  tracker = _tracker()
  before = costs.Tokens(1000, 200)
  for number in range(costs.CALIBRATED_AFTER):
    assert not tracker.calibrated and tracker.calibrate(before) == before
    assert tracker.estimate(_call()) == costs.Tokens(100, 20)
    tracker.record_answer(_call(), _usage(130, 10 if number % 2 else 20))
  assert tracker.calibrated
  likely = tracker.estimate(_call(prompt_bytes=800, samples=2))
  assert likely.prompt == pytest.approx(260)
  assert likely.completion == pytest.approx(30)
  assert tracker.calibrate(before).prompt == pytest.approx(1300)
  assert tracker.calibrate(before).completion == pytest.approx(150)
  assert tracker.paid == costs.Tokens(20 * 130, 10 * 10 + 10 * 20)


def test_a_restart_counts_what_the_file_says_was_paid():
  tracker = _tracker()
  tracker.restore({'kind': 'header'})
  tracker.restore({'kind': 'completion', 'usage': _usage(100, 10)})
  tracker.restore({'kind': 'completion', 'usage': None})
  tracker.restore({'kind': 'rationalization', 'usage': _usage(50, 5)})
  tracker.restore({'kind': 'lost', 'usage': _usage(7, 1)})
  tracker.restore({'kind': 'failure'})
  assert tracker.paid == costs.Tokens(150, 15)
  assert tracker.lost == costs.Tokens(7, 1)
  assert tracker.spent() == pytest.approx((157 * 2 + 16 * 10) / 1e6)


@pytest.mark.parametrize('seed', range(5))
def test_no_order_of_answers_and_losses_passes_the_budget(seed):
  draw = random.Random(seed)
  prices = costs.Prices(3.0, 8.0, budget=0.05)
  tracker = costs.CostTracker(prices, max_tokens=60, answer_bytes=80)
  in_flight, done = [], 0
  while True:
    call = _call(draw.randint(100, 900), draw.randint(1, 3))
    if len(in_flight) < 5 and tracker.try_reserve(call):
      in_flight.append(call)
      continue
    if not in_flight:
      break
    landed = in_flight.pop(draw.randrange(len(in_flight)))
    tracker.release(landed)
    if draw.random() < 0.1:
      tracker.record_lost(landed)
    else:
      used = draw.randint(1, landed.prompt_bytes)
      said = draw.randint(0, 60 * len(landed.samples))
      tracker.record_answer(landed, _usage(used, said))
      done += 1
    assert tracker.spent() <= prices.budget and not tracker.over_budget()
  # What is left would not have paid one more call.
  assert prices.budget - tracker.spent() < prices.cost(costs.Tokens(900, 180))
  assert done > 20


def test_without_a_budget_every_call_is_allowed():
  tracker = _tracker()
  assert all(tracker.try_reserve(_call(10**9)) for _ in range(100))
  assert not tracker.over_budget()


@pytest.mark.parametrize(
  'build, words',
  [
    (lambda: costs.Prices(-1.0), '--price_in is -1.0'),
    (lambda: costs.Prices(budget=5.0), 'no price is known'),
    (
      lambda: _tracker(costs.Prices(1.0, 1.0, 5.0), max_tokens=0),
      '--budget needs --max_tokens',
    ),
  ],
)
def test_wrong_prices_are_refused(build, words):
  with pytest.raises(contract.UserError, match=words):
    build()
