# SPDX-License-Identifier: Apache-2.0
"""Estimates, payments and the budget, against sums done by hand."""

import random

import pytest

from rationales import bill, calls, records


def _call(prompt_bytes=400, samples=1, chat=False):
  return calls.Call(
    kind=records.COMPLETION,
    example_id='x',
    samples=tuple(range(samples)),
    content=[{'role': 'user', 'content': ''}] * 3 if chat else '',
    prompt_hash='0' * 16,
    prompt_bytes=prompt_bytes,
    gold='',
  )


def _usage(prompt, completion):
  return {'prompt_tokens': prompt, 'completion_tokens': completion}


def _bill(prices=None, max_tokens=100):
  prices = prices or bill.Prices(2.0, 10.0)
  return bill.Bill(prices, max_tokens=max_tokens, answer_bytes=80)


def test_an_estimate_is_bytes_over_four_and_the_exemplars_mean():
  account = _bill()
  assert account.expected(_call()) == bill.Tokens(100, 20)
  assert account.expected(_call(chat=True)) == bill.Tokens(124, 20)
  assert account.expected(_call(samples=3)) == bill.Tokens(100, 60)
  assert account.at_most(_call(samples=3)) == bill.Tokens(400, 300)
  assert account.prices.cost(bill.Tokens(1e6, 2e6)) == 22.0
  assert _bill(max_tokens=5).expected(_call()).completion == 5


def test_twenty_answers_correct_the_estimate():
  account = _bill()
  before = bill.Tokens(1000, 200)
  for number in range(bill.CORRECTED_AFTER):
    assert not account.corrected and account.correct(before) == before
    assert account.expected(_call()) == bill.Tokens(100, 20)
    account.answer(_call(), _usage(130, 10 if number % 2 else 20))
  assert account.corrected
  likely = account.expected(_call(prompt_bytes=800, samples=2))
  assert likely.prompt == pytest.approx(260)
  assert likely.completion == pytest.approx(30)
  assert account.correct(before).prompt == pytest.approx(1300)
  assert account.correct(before).completion == pytest.approx(150)
  assert account.paid == bill.Tokens(20 * 130, 10 * 10 + 10 * 20)


def test_a_restart_counts_what_the_file_says_was_paid():
  account = _bill()
  account.remember({'kind': 'header'})
  account.remember({'kind': 'completion', 'usage': _usage(100, 10)})
  account.remember({'kind': 'completion', 'usage': None})
  account.remember({'kind': 'rationalization', 'usage': _usage(50, 5)})
  account.remember({'kind': 'lost', 'usage': _usage(7, 1)})
  account.remember({'kind': 'failure'})
  assert account.paid == bill.Tokens(150, 15)
  assert account.lost == bill.Tokens(7, 1)
  assert account.spent() == pytest.approx((157 * 2 + 16 * 10) / 1e6)


@pytest.mark.parametrize('seed', range(5))
def test_no_order_of_answers_and_losses_passes_the_budget(seed):
  draw = random.Random(seed)
  prices = bill.Prices(3.0, 8.0, budget=0.05)
  account = bill.Bill(prices, max_tokens=60, answer_bytes=80)
  flying, done = [], 0
  while True:
    call = _call(draw.randint(100, 900), draw.randint(1, 3))
    if len(flying) < 5 and account.admits(call):
      flying.append(call)
      continue
    if not flying:
      break
    landed = flying.pop(draw.randrange(len(flying)))
    account.release(landed)
    if draw.random() < 0.1:
      account.lose(landed)
    else:
      used = draw.randint(1, landed.prompt_bytes)
      said = draw.randint(0, 60 * len(landed.samples))
      account.answer(landed, _usage(used, said))
      done += 1
    assert account.spent() <= prices.budget and not account.overdrawn()
  # What is left would not have paid one more call.
  assert prices.budget - account.spent() < prices.cost(bill.Tokens(900, 180))
  assert done > 20


def test_without_budget_everything_is_admitted():
  account = _bill()
  assert all(account.admits(_call(10**9)) for _ in range(100))
  assert not account.overdrawn()


@pytest.mark.parametrize(
  'build, words',
  [
    (lambda: bill.Prices(-1.0), '--price_in is -1.0'),
    (lambda: bill.Prices(budget=5.0), 'no price is known'),
    (
      lambda: _bill(bill.Prices(1.0, 1.0, 5.0), max_tokens=0),
      '--budget needs --max_tokens',
    ),
  ],
)
def test_senseless_prices_are_refused(build, words):
  with pytest.raises(ValueError, match=words):
    build()
