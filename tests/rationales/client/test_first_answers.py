# SPDX-License-Identifier: Apache-2.0
"""A run whose first twenty calls are of no use ends."""

from rationales.client import first_answers
from tests.rationales import command, sums


def test_a_run_of_which_no_answer_can_be_read_ends(server, extract, out):
  server.configure(cut=['What'])
  done = extract(200)
  assert done.status == 2, done.output
  for words in (
    'The run was stopped: none of the first 20 answers has a label that the'
    " benchmark 'sums' reads (20 no_marker, 20 of them cut at --max_tokens)",
    "such as train-0: 'Take 0: 0 an'",
    'go on with --nostop_early',
  ):
    assert words in done.output, words
  kept = len(command.answers(out))
  assert kept == 20 == server.stats()['paid']
  done = extract(None, '--nostop_early')
  assert done.status == 0 and 'parsed 0.0%' in done.output, done.output
  assert len(command.answers(out)) == 200


def test_one_answer_that_can_be_read_is_enough(server, extract):
  server.configure(
    cut=[f'is {n} +' for n in range(60) if n != 15]  # 15 is read
  )
  done = extract(60, '--concurrency=1')
  assert done.status == 0, done.output


def test_failures_in_a_row_end_no_run_that_is_to_go_on(server, extract):
  server.configure(status=400, message='no')
  assert '20 rows in a row failed for good' in extract(50).output
  server.configure(status=400, message='no')
  done = extract(50, '--nostop_early')
  assert done.status == 1 and '50 calls failed for good' in done.output
  assert server.stats()['calls'] == 50


def test_labels_are_checked_beside_the_layout():
  assert first_answers.problem(sums.BENCHMARK, 'So. The answer is 5.') is None
  assert first_answers.problem(sums.BENCHMARK, 'So.') == 'no_marker'
  closed = sums.closed('4', '6')
  assert first_answers.problem(closed, 'So. The answer is 4.') is None
  said = first_answers.problem(closed, 'So. The answer is 5.')
  assert said == 'outside_labels'
