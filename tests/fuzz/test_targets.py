# SPDX-License-Identifier: Apache-2.0
"""No bytes hurt the readers, the evaluator and the gin front.

A short search of every target by Hypothesis; atheris goes on for minutes in
test_campaign.py. What either has found stays in FOUND.
"""

import time

import hypothesis
import hypothesis.strategies as st
import pytest

from tests.fuzz import targets

# Inputs that broke a promise once.
FOUND = {
  'gin': (
    b'WIDTH = (1',
    b"WIDTH = '''open",
    b'WIDTH = ' + b'[' * 500,
    b'\xff\xfe',
    b'\xef\xbb\xbfWIDTH = 1',
    b'gin_settings.Model.depth = %NOWHERE',
  ),
  'ledger': (
    b'{"kind": "completion", "text": ""}\n{}\n',
    b'{"kind": "completion", "text": "", "id": "r", "sample": 0,'
    b' "prompt_hash": "-1"}\n{}\n',
    b'{"kind": "completion", "text": "", "id": "r", "sample": 0,'
    b' "prompt_hash": "00}f"}\n{}\n',
    b'{"kind": "header"}\n{}\n',
    b'{"kind": "batch"}\n{}\n',
    b'[' * 100_000 + b'\n{}\n',
  ),
  'jsonl': (
    b'{"kind": "header", "settings": [1]}\n',
    b'{"id": "r", "text": "\\ud800"}\n',
    b'[' * 100_000,
    b'{"id": ' + b'9' * 5000 + b'}\n',
    b'\xef\xbb\xbf\xef\xbb\xbf{}',
  ),
  'parsers': (
    b'The answer is ' + b'(' * 100_000,
    b'The answer is ' + b'(' * 50_000 + b')' * 50_000,
    b'The answer is ' + b'a' * 1_000_000,
    b'So the answer is ' + b'(' * 1_000_000,
    b'Answer: ' * 100_000,
  ),
  'equations': (
    b'9**9**9',
    b'(' * 100_000 + b'1' + b')' * 100_000,
    b'9' * 10_000_000,
    b'1' + b'+1' * 499,
    b'\x00',
    b'\xed\xa0\x80',
    b"__import__('os').system('true')",
    b'1e99999999999999999999',
    '٣ + ٣'.encode(),
    b'\r1\r',
  ),
}
SECONDS = 30.0  # of CPU: milliseconds, or hours where work is quadratic


@pytest.mark.parametrize('name', targets.TARGETS)
def test_what_was_found_stays_fixed_and_fast(name):
  for data in FOUND[name]:
    begin = time.thread_time()
    targets.TARGETS[name].run(data)
    assert time.thread_time() - begin < SECONDS, data[:60]


def _inputs(pieces):
  encoded = [piece.encode('utf-8', 'surrogatepass') for piece in pieces]
  some = st.lists(st.sampled_from(encoded) | st.binary(max_size=4), max_size=12)
  return some.map(b''.join)


@pytest.mark.parametrize('name', targets.TARGETS)
def test_no_bytes_break_a_promise(name):
  target = targets.TARGETS[name]

  @hypothesis.given(_inputs(target.pieces))
  @hypothesis.settings(max_examples=40)
  def search(data):
    target.run(data)

  search()


def test_the_value_of_an_equation_does_not_depend_on_the_caller():
  from dsbs_jax.data import metrics

  def deep(levels):
    return deep(levels - 1) if levels else metrics.value('1' + '+1' * 499)

  assert deep(0) == deep(600) == 500.0
