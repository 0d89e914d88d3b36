# SPDX-License-Identifier: Apache-2.0
"""What the command promises when servers, files or settings are at fault."""

import dataclasses
import functools
import json
import os
import signal

import pytest

from dsbs_jax import contract
from dsbs_jax.data.source import sources
from rationales.record import completions_file
from tests.rationales import command, sums


def test_401_stops_the_run_at_once_with_the_reason(server, extract, out):
  server.configure(status=401, message='wrong key {key}')
  done = extract(500, '--concurrency=16')
  assert done.status == 2
  assert 'error: The run was stopped: 401: wrong key [key]' in done.output
  assert 'Traceback' not in done.output
  assert server.stats()['answered'] == 0
  assert server.stats()['calls'] <= 16
  assert not command.answers(out)


def test_400_and_404_are_not_tried_again(server, extract, out):
  server.configure(failing=['is 5 +', 'is 6 +'], message='not this one')
  done = extract(30)
  assert done.status == 1, done.output
  assert server.stats()['calls'] == 30
  assert len(command.answers(out)) == 28
  failures = command.lines(out, completions_file.FAILURE)
  assert {line['id'] for line in failures} == {'train-5', 'train-6'}
  assert all(line['status'] == 400 for line in failures)
  assert '2 calls failed for good' in done.output
  assert 'train-5: 400: not this one' in done.output
  # The next run takes them up, and only them.
  server.configure()
  assert extract().status == 0
  assert server.stats()['answered'] == 2
  assert len(command.answers(out)) == 30


def test_a_server_that_fails_every_row_is_not_asked_for_all(server, extract):
  server.configure(status=404, message='no such model')
  done = extract(500, '--concurrency=8')
  assert done.status == 2
  assert '20 rows in a row failed for good' in done.output
  assert server.stats()['calls'] < 40


def test_a_very_long_retry_after_ends_the_run(server, extract):
  server.configure(status=429, retry_after=86400, message='daily limit')
  done = extract(5)
  assert done.status == 2
  assert 'asks to wait 86,4' in done.output


def test_changed_settings_are_refused_with_the_difference(server, extract, out):
  assert extract(5).status == 0
  before = out.read_bytes()
  for flags, words in [
    (['--temperature=0.5'], 'temperature: 0.0 in the file, 0.5 now'),
    (['--exemplars=2'], 'exemplars: 3 in the file, 2 now'),
    (['--stop=X'], "stop: [] in the file, ['X'] now"),
    (['--endpoint=completions'], "'chat' in the file, 'completions' now"),
    (['--extra={"top_p": 0.5}'], "extra: {} in the file, {'top_p': 0.5} now"),
  ]:
    done = extract(None, *flags)
    assert done.status == 2 and words in done.output, done.output
  assert out.read_bytes() == before
  server.configure()
  done = extract(8, '--exemplars=2', '--force')
  assert done.status == 0, done.output
  assert server.stats()['answered'] == 3
  assert len(command.lines(out, completions_file.HEADER)) == 2


def test_settings_bind_from_the_first_answer_on(server, extract, out):
  server.configure(status=401)
  assert extract(3).status == 2
  assert not command.answers(out)
  server.configure()
  done = extract(3, '--temperature=0.5')
  assert done.status == 0, done.output
  assert (
    command.lines(out, completions_file.HEADER)[-1]['settings']['temperature']
    == 0.5
  )


def test_changed_rows_are_noticed(server, extract, out, tmp_path):
  assert extract(5).status == 0
  path = tmp_path / 'sums_train.json'
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[1:] + lines[:1]))
  done = extract()
  assert done.status == 2
  assert 'sums_train.json:1 (id train-0) was answered already' in done.output
  assert server.stats()['answered'] == 5


def test_completions_of_other_rows_are_not_prepared(
  server, extract, out, tmp_path
):
  assert extract(5).status == 0
  examples = functools.partial(
    sources.Examples, source=tmp_path, split='train', completions=out
  )
  assert len(list(examples(sums.BENCHMARK))) == 5
  other = dataclasses.replace(sums.BENCHMARK, name='other')
  with pytest.raises(
    contract.UserError, match=r"train.jsonl:1 .* benchmark 'sums', .*'other'"
  ):
    list(examples(other))
  path = tmp_path / 'sums_train.json'
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[1:] + lines[:1]))
  number = next(
    number
    for number, line in enumerate(out.read_text().splitlines(), 1)
    if '"train-0"' in line
  )
  replay = ['--backend=replay', f'--replay={out}']
  done = extract(None, *replay, f'--out={tmp_path}/replayed.jsonl')
  assert done.status == 2 and 'is to another row' in done.output, done.output
  with pytest.raises(contract.UserError) as error:
    list(examples(sums.BENCHMARK))
  for words in (
    f"train.jsonl:{number} has the id 'train-0' of ",
    'sums_train.json:1, but answers another row',
    "the row reads 'What is 1 + 7?'",
    "the completion 'Take 0: 0 and 0 are added.",
  ):
    assert words in str(error.value), words


def test_another_model_behind_the_server_is_noticed(
  server, extract, out, tmp_path
):
  assert extract(5).status == 0
  server.change(model='another')
  flags = ['--price_in=1', '--price_out=1']
  done = extract(9, *flags)
  assert done.status == 2, done.output
  assert "answers as 'another'" in done.output and '--force' in done.output
  assert 'are of teacher' in done.output
  assert {line['model'] for line in command.answers(out)} == {'teacher'}
  # They are paid: the file keeps them, with what they cost.
  lost = command.lines(out, completions_file.LOST)
  assert len(lost) == server.stats()['answered'] - 5
  assert all(line['usage']['prompt_tokens'] for line in lost)
  assert lost[0]['model'] == 'another' and 'are added' in lost[0]['texts'][0]
  server.change(model=None)
  assert extract(7).status == 0
  server.change(model='another')
  done = extract(9, '--force')
  assert done.status == 0 and "answers as 'another'" in done.output
  examples = sources.Examples(
    sums.BENCHMARK, tmp_path, split='train', completions=out
  )
  assert examples.counts.models == {'teacher': 7, 'another': 2}


def test_answers_without_use_are_asked_for_again(server, extract, out):
  server.configure(cut=['is 1 +', 'is 2 +'], withheld=['is 4 +'])
  assert extract(9, '--max_tokens=50').status == 0
  first = {line['id']: line for line in command.answers(out)}
  assert first['train-4']['refusal'] == 'I would rather not.'
  assert first['train-4']['text'] == ''
  # What is 7 + ... is never readable; the cut ones and the refusal are not now.
  for retry, ids in (
    ('cut', {1, 2}),
    ('empty', {4}),
    ('unparsed', {1, 2, 4, 7}),
    ('all', {1, 2, 4, 7}),
  ):
    done = extract(None, '--max_tokens=50', f'--retry={retry}', '--dry_run')
    assert f'{len(ids)} calls for {len(ids)} completions' in done.output, retry
  server.configure()
  done = extract(None, '--max_tokens=90', '--retry=all')
  assert done.status == 0, done.output
  assert server.stats()['answered'] == 4
  again = [line for line in command.answers(out) if line.get('retry')]
  assert {line['id'] for line in again} == {f'train-{i}' for i in (1, 2, 4, 7)}
  examples = sources.Examples(
    sums.BENCHMARK, out.parents[1], split='train', completions=out
  )
  statuses = [example.status for example in examples]
  assert statuses == ['parsed'] * 7 + ['no_marker', 'parsed']
  done = extract(None, '--max_tokens=90')
  assert done.status == 0 and '0 calls' in done.output
  assert 'max_tokens: 90 in the file' in extract(None).output


def test_hinted_answers_are_asked_for_again_too(server, extract, out):
  assert extract(9).status == 0
  server.configure(cut=['is 3 +'])
  assert extract(None, '--rationalize').status == 0
  server.configure()
  done = extract(None, '--rationalize', '--retry=cut')
  assert done.status == 0 and '1 calls for 1' in done.output, done.output
  examples = sources.Examples(
    sums.BENCHMARK,
    out.parents[1],
    split='train',
    completions=out,
    rationalized=True,
  )
  assert [e.status for e in examples][3] == 'rationalized'


def test_answers_to_ids_of_no_row_are_told(server, extract, out):
  assert extract(5).status == 0
  before = out.read_text()
  line = command.answers(out)[0]
  for number in (7, 9):
    line['id'] = f'train-{number}'
    before += json.dumps(line) + '\n'
  out.write_text(before)
  done = extract()
  assert done.status == 0 and '; 5 are answered already' in done.output
  assert '2 answers in ' in done.output
  assert "no row of train has, such as 'train-7'" in done.output
  # Not with a limit, which leaves rows out; the log is of both runs.
  assert extract(None, '--limit=3').output.count('foreign') == 1


def test_two_processes_on_one_file(server, extract, out):
  server.configure(hold_after=0)
  first = extract(5, wait=False)
  server.wait(held=1)  # the first call is made alone
  second = extract()
  assert second.status == 2
  assert 'written by another process' in second.output
  first.kill()
  server.configure()
  assert extract().status == 0
  assert len(command.answers(out)) == 5


def test_a_torn_last_line_is_repaired_and_asked_again(server, extract, out):
  assert extract(6).status == 0
  out.write_bytes(out.read_bytes()[:-30])
  done = extract()
  assert done.status == 0
  assert 'an incomplete last line was cut off' in done.output
  assert len(command.answers(out)) == 6
  assert server.stats()['answered'] == 7


def test_interrupt_keeps_what_is_in_flight(server, extract, out):
  server.configure(hold_after=10)
  running = extract(100, '--concurrency=8', wait=False)
  server.wait(held=8)
  os.kill(running.process.pid, signal.SIGINT)
  server.change(hold_after=None)
  done = running.wait()
  assert done.status == 130 and 'interrupted' in done.output
  stats = server.stats()
  assert 18 <= stats['paid'] == len(command.answers(out)) < 100


def test_nothing_is_paid_into_a_file_that_was_removed(server, extract, out):
  server.configure(hold_after=10)
  running = extract(40, '--concurrency=8', wait=False)
  server.wait(held=8)
  out.unlink()
  server.change(hold_after=None)
  done = running.wait()
  assert done.status == 2 and 'train.jsonl was removed' in done.output
  assert server.stats()['calls'] == 18
  (rescued,) = out.parent.iterdir()
  assert f'is in {rescued}: move it' in done.output
  rescued.rename(out)
  assert extract().status == 0
  assert server.stats()['calls'] == 40 == len(command.answers(out))


def test_a_row_whose_answer_floods_fails_with_that_reason(server, extract, out):
  server.configure(faults=1.0, kinds=['bomb'])
  done = extract(2, '--price_in=1', '--price_out=1')
  assert done.status == 1, done.output
  assert server.stats()['calls'] == 2
  reason = 'an answer of more than 4,194,304 bytes'
  failures = command.lines(out, completions_file.FAILURE)
  assert [reason in line['error'] for line in failures] == [True, True]
  lost = command.lines(out, completions_file.LOST)
  assert all(line['usage']['completion_tokens'] for line in lost)
  assert len(lost) == 2 and done.peak_mib < 250
