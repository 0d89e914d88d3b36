# SPDX-License-Identifier: Apache-2.0
"""The Batch API: every step survives a restart, nothing is sent twice."""

import os
import signal

import pytest

from rationales.record import batch_jobs, completions_file
from tests.rationales import command, sums
from tests.rationales.test_extraction import assert_one_good_line_per_row

FLAGS = ('--backend=batch', '--poll_seconds=0.01', '--batch_size=8')


def _events(path):
  return [
    (line['number'], line['event'])
    for line in command.lines(path, completions_file.BATCH)
  ]


def _forget_from(path, event):
  """Cuts the file before the first line with this event, as a crash would."""
  text = path.read_text()
  lines = text.splitlines(keepends=True)
  first = next(
    number for number, line in enumerate(lines) if f'"{event}"' in line
  )
  path.write_text(''.join(lines[:first]))


def test_batches_answer_every_row(server, extract, out, tmp_path):
  server.configure(batch_polls=3)
  done = extract(20, *FLAGS)
  assert done.status == 0, done.output
  assert_one_good_line_per_row(out, 20)
  stats = server.stats()
  assert stats['batches'] == 3 and stats['paid'] == 20
  assert not stats['calls']  # nothing was asked online
  steps = (batch_jobs.UPLOADED, batch_jobs.CREATED, batch_jobs.COLLECTED)
  assert sorted(_events(out)) == sorted(
    (number, step) for number in (1, 2, 3) for step in steps
  )
  assert [path.name for path in out.parent.iterdir()] == [out.name]
  usage = [line['usage'] for line in command.answers(out)]
  assert all(u['completion_tokens'] > 0 for u in usage)
  assert extract(None, *FLAGS).status == 0
  assert server.stats()['batches'] == 3


def test_a_file_that_was_removed_ends_the_wait(server, extract, out):
  server.configure(batch_polls=10**6)
  running = extract(8, *FLAGS, wait=False)
  server.wait(polls=1)
  out.unlink()
  done = running.wait()
  assert done.status == 2 and 'train.jsonl was removed' in done.output
  (rescued,) = out.parent.glob('*.rescued-*')
  rescued.rename(out)
  server.change(batch_polls=1)
  assert extract(None, *FLAGS).status == 0
  assert_one_good_line_per_row(out, 8)
  assert server.stats()['batches'] == 1


def test_a_killed_wait_goes_on_with_the_same_batch(server, extract, out):
  server.configure(batch_polls=10**6)
  running = extract(8, *FLAGS, wait=False)
  server.wait(polls=1)
  running.kill()
  # Rows of a pending batch are not asked for in another way.
  refused = extract(None)
  assert refused.status == 2
  assert 'Collect them with --backend=batch first' in refused.output
  assert 'batch-0' in refused.output and not server.stats()['calls']
  server.change(batch_polls=1)
  assert extract(None, *FLAGS).status == 0
  assert_one_good_line_per_row(out, 8)
  assert server.stats()['batches'] == 1


def test_interrupt_leaves_the_batch_to_the_next_run(server, extract, out):
  server.configure(batch_polls=10**6)
  running = extract(8, *FLAGS, wait=False)
  server.wait(polls=1)
  os.kill(running.process.pid, signal.SIGINT)
  done = running.wait()
  assert done.status == 130, done.output
  assert 'stopped: interrupted; the same command continues' in done.output
  server.change(batch_polls=1)
  assert extract(None, *FLAGS).status == 0
  assert_one_good_line_per_row(out, 8)
  assert server.stats()['batches'] == 1


def test_a_batch_that_cannot_be_polled_is_not_asked_again(server, extract, out):
  server.configure(batch_polls=10**6)
  running = extract(8, *FLAGS, wait=False)
  server.wait(polls=1)
  running.kill()
  server.change(batches_unreachable=True)
  stopped = extract(None, *FLAGS, '--attempts=1')
  assert stopped.status not in (0, 1), stopped.output
  assert server.stats()['batches'] == 1
  server.change(batches_unreachable=False, batch_polls=1)
  assert extract(None, *FLAGS).status == 0
  assert_one_good_line_per_row(out, 8)
  stats = server.stats()
  assert stats['batches'] == 1 and stats['paid'] == 8


def test_a_batch_that_the_server_forgot_is_given_up_only_on_demand(
  server, extract, out
):
  server.configure(batch_polls=10**6)
  running = extract(8, *FLAGS, wait=False)
  server.wait(polls=1)
  running.kill()
  server.change(batches_forgotten=True, batch_polls=1)
  refused = extract(None, *FLAGS)
  assert refused.status == 2 and server.stats()['batches'] == 1
  for part in ('batch-0 (404)', '--base_url', '--forget_batches'):
    assert part in refused.output, refused.output
  priced = ('--price_in=1000', '--price_out=1000', '--budget=1000')
  again = extract(None, *FLAGS, *priced, '--forget_batches')
  assert again.status == 0, again.output
  assert_one_good_line_per_row(out, 8)
  # What the lost batch may have cost counts against the budget.
  lost = command.lines(out, completions_file.LOST)
  assert len(lost) == 8 and all('batch-0' in line['reason'] for line in lost)
  assert server.stats()['batches'] == 2
  assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_creation_whose_answer_is_lost_is_not_repeated(server, extract, out):
  server.configure(lost_creations=1)
  assert extract(8, *FLAGS).status == 0
  assert_one_good_line_per_row(out, 8)
  assert server.stats()['batches'] == 1


@pytest.mark.parametrize('lost', [batch_jobs.CREATED, batch_jobs.COLLECTED])
def test_a_crash_before_a_step_is_noted_is_made_good(
  server, extract, out, lost
):
  server.configure(batch_polls=10**6)
  running = extract(8, *FLAGS, wait=False)
  server.wait(polls=1)
  running.kill()
  server.change(batch_polls=1)
  if (
    lost == batch_jobs.COLLECTED
  ):  # the answers came, the last step was not noted
    kept = {p: p.read_bytes() for p in out.parent.glob('*.batch-*')}
    assert len(kept) == 2
    assert extract(None, *FLAGS).status == 0
    for path, content in kept.items():
      path.write_bytes(content)
    half = command.answers(out)[3]['id']
    _forget_from(out, batch_jobs.COLLECTED)
    _forget_from(out, half)
    assert len(command.answers(out)) == 3
  else:
    _forget_from(out, lost)
  done = extract(None, *FLAGS)
  assert done.status == 0, done.output
  assert_one_good_line_per_row(out, 8)
  stats = server.stats()
  assert stats['batches'] == 1
  assert stats['files'] == 2  # requests and answers


def test_failed_rows_of_a_batch_are_recorded_and_taken_up(server, extract, out):
  server.configure(failing=['is 5 +'])
  done = extract(8, *FLAGS)
  assert done.status == 1, done.output
  assert len(command.answers(out)) == 7
  [failure] = command.lines(out, completions_file.FAILURE)
  assert failure['id'] == 'train-5' and failure['status'] == 400
  assert 'not this one' in failure['error']
  server.configure()
  assert extract(None, *FLAGS).status == 0
  assert_one_good_line_per_row(out, 8)


def test_rows_without_a_line_are_recorded_and_taken_up(server, extract, out):
  server.configure(left_out=['is 5 +'])
  done = extract(8, *FLAGS)
  assert done.status == 1, done.output
  [failure] = command.lines(out, completions_file.FAILURE)
  assert failure['id'] == 'train-5' and 'has no line' in failure['error']
  server.configure()
  assert extract(None, *FLAGS).status == 0
  assert_one_good_line_per_row(out, 8)


@pytest.mark.parametrize(
  'line', ['{"custom_id": "0', '{}', '{"custom_id": 99}']
)
def test_a_line_that_cannot_be_read_is_named(server, extract, line):
  server.configure(broken_lines=[line])
  done = extract(3, *FLAGS)
  assert done.status == 2, done.output
  assert 'of batch batch-0 has a line that cannot be read' in done.output


def test_a_batch_asks_again_about_answers_without_use(server, extract, out):
  server.configure(cut=['is 5 +'])
  assert extract(7, *FLAGS).status == 0
  server.configure()
  assert extract(None, *FLAGS, '--retry=cut').status == 0
  lines = [x for x in command.answers(out) if x['id'] == 'train-5']
  texts = [line['text'] for line in lines]
  assert len(texts) == 2 and texts[1].startswith(texts[0])
  assert '0 calls' in extract(None, *FLAGS, '--retry=cut').output


def test_answers_of_another_model_stay_on_the_server(server, extract, out):
  assert extract(4, *FLAGS).status == 0
  server.change(model='another')
  refused = extract(8, *FLAGS)
  assert refused.status == 2 and "as 'another'" in refused.output
  assert len(command.answers(out)) == 4
  assert extract(None, *FLAGS, '--force').status == 0
  assert_one_good_line_per_row(out, 8)
  assert server.stats()['batches'] == 2


def test_a_batch_that_fails_as_a_whole_says_why(server, extract, out):
  server.configure(batch_end='failed')
  done = extract(5, *FLAGS)
  assert done.status == 2, done.output
  assert 'batch batch-0 is failed: the queue is full' in done.output
  server.configure()
  assert extract(None, *FLAGS).status == 0
  assert_one_good_line_per_row(out, 5)


def test_the_budget_holds_for_batches(server, extract, out):
  prices = ['--price_in=1', '--price_out=10', '--max_tokens=40']
  done = extract(40, *FLAGS, *prices, '--budget=0.01')
  assert done.status == 3, done.output
  paid = server.stats()['paid']
  assert 0 < paid == len(command.answers(out)) < 40
  # What was set aside for a batch is free again once it is collected.
  assert extract(None, *FLAGS, *prices, '--budget=0.01').status == 3
  assert server.stats()['paid'] > paid
  tokens = [line['usage'] for line in command.answers(out)]
  cost = sum(u['prompt_tokens'] + 10 * u['completion_tokens'] for u in tokens)
  assert cost / 1e6 <= 0.01


def test_samples_and_hints_work_in_batches(server, extract, out):
  flags = [*FLAGS, '--temperature=1', '--samples=2']
  assert extract(10, *flags).status == 0
  assert_one_good_line_per_row(out, 10, samples=2)
  assert extract(None, *flags, '--rationalize').status == 0
  hinted = command.lines(out, completions_file.RATIONALIZATION)
  assert {line['id'] for line in hinted} == {
    f'train-{digit}' for digit in (sums.WRONG_DIGIT, sums.UNREADABLE_DIGIT)
  }
  assert all(line['hint'] for line in hinted)


def test_samples_that_a_server_left_out_are_asked_for_again(
  server, extract, out
):
  server.configure(most_choices=1)  # as servers that do not know `n`
  flags = [*FLAGS, '--temperature=1', '--samples=2']
  assert extract(4, *flags).status == 0
  assert_one_good_line_per_row(out, 4, samples=2)
