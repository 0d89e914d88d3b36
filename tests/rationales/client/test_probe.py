# SPDX-License-Identifier: Apache-2.0
"""The first call is made alone; what it shows is told, and what it costs kept."""

import pytest

from rationales.record import completions_file
from tests.rationales import command


def test_the_first_call_is_made_alone_and_its_answer_kept(server, extract, out):
  server.configure(hold_after=0)
  running = extract(30, wait=False)
  server.wait(held=1)
  assert server.stats()['calls'] == 1
  server.change(hold_after=None)
  done = running.wait()
  assert done.status == 0, done.output
  assert server.stats()['calls'] == 30 == len(command.answers(out))
  for words in (
    "first answer, to train-0, by 'teacher':",
    "rationale  'Take 0: 0 and 0 are added.'",
    "label      '0' (the human label: '0')",
  ):
    assert done.output.count(words) == 1, done.output


@pytest.mark.parametrize(
  'right, given',
  [('/v1', ''), ('/api', '/api/v1'), ('/v1', '/v2'), ('/v1', '/v1/v1')],
)
def test_a_wrong_address_is_told_with_the_right_one(
  server, extract, out, right, given
):
  host = server.base_url.removesuffix('/v1')
  server.configure(prefix=right, models=['teacher'])
  done = extract(5, f'--base_url={host}{given}')
  assert done.status == 2, done.output
  assert f'404: File Not Found; nothing is at {host}{given}, but' in done.output
  assert f'give --base_url={host}{right}.' in done.output
  assert server.stats()['calls'] == 1 and not server.stats()['paid']
  assert not command.lines(out, completions_file.FAILURE)


@pytest.mark.parametrize('status', [400, 404])
def test_an_unknown_model_is_told_with_those_that_are_there(
  server, extract, status
):
  models = ['small', 'large', *(f'm{i}' for i in range(12))]
  server.configure(status=status, message="no model 'teacher'", models=models)
  done = extract(5)
  assert done.status == 2, done.output
  words = f"{status}: no model 'teacher'; --model is 'teacher', and the server"
  assert words in done.output
  assert 'small, large, m0' in done.output and 'and 4 more' in done.output
  assert server.stats()['calls'] == 1


def test_a_model_that_takes_every_name_is_told(server, extract):
  server.configure(model='smollm2', extras=True)
  done = extract(3)
  assert done.status == 0, done.output
  assert "by 'smollm2', where 'teacher' was asked for:" in done.output


def test_a_key_that_is_not_set_is_named(server, extract):
  server.configure(key='sk-right-key')
  done = extract(5, '--key_variable=MY_KEY')
  assert done.status == 2, done.output
  assert '401: Invalid API Key; the environment variable MY_KEY is' in (
    done.output
  )
  assert server.stats()['calls'] == 1
  server.configure(key='sk-right-key')
  assert 'Invalid API Key. What' in extract(5).output  # another key is set
  key = {'MY_KEY': 'sk-right-key'}
  assert extract(5, '--key_variable=MY_KEY', environment=key).status == 0


def test_too_many_samples_per_call_are_told_with_the_flag(server, extract, out):
  server.configure(most_n=2)
  flags = ['--samples=4', '--temperature=0.7']
  done = extract(5, *flags)
  assert done.status == 2, done.output
  assert '1 <= value <= 2, but got 4; one call asked for 4' in done.output
  assert '--samples_per_call=1' in done.output
  assert server.stats()['calls'] == 1
  assert extract(5, *flags, '--samples_per_call=2').status == 0
  assert len(command.answers(out)) == 20


def test_a_server_that_ignores_the_number_of_samples_is_told(server, extract):
  server.configure(most_choices=1)
  done = extract(2, '--samples=3', '--temperature=0.7')
  assert done.status == 0, done.output
  assert '3 samples were asked for and 1 came' in done.output


def test_an_answer_that_cannot_be_read_is_shown(server, extract):
  server.configure(cut=['What is 0'], thinking='field')
  done = extract(30)
  assert done.status == 0, done.output
  for words in (
    "answer     'Take 0: 0 an",
    'no label   no_marker',
    'it was cut at --max_tokens',
    'characters of reasoning came before it',
  ):
    assert words in done.output, words


def test_a_first_row_that_is_refused_does_not_end_the_run(server, extract, out):
  server.configure(
    failing=['is 0 +'], message='exceeds the context', models=['its-own']
  )
  done = extract(5)
  assert done.status == 1, done.output
  assert 'train-0: 400: exceeds the context' in done.output
  assert 'first answer, to train-1' in done.output
  assert len(command.answers(out)) == 4


def test_a_server_that_is_loading_is_waited_for(server, extract, out):
  server.configure(loading=1)
  done = extract(5, '--attempts=2')
  assert done.status == 0, done.output
  assert len(command.answers(out)) == 5
  assert not command.lines(out, completions_file.FAILURE)
