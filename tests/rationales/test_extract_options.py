# SPDX-License-Identifier: Apache-2.0
"""Samples, the second pass, the costs before and after, and the key."""

import json

from dsbs_jax.data.source import sources
from rationales.record import completions_file
from tests.rationales import command, sums


def test_samples_share_a_prompt_and_missing_ones_are_asked_for(
  server, extract, out
):
  flags = ['--temperature=0.7', '--samples=3']
  assert extract(10, *flags).status == 0
  assert server.stats()['answered'] == 10
  server.configure(most_choices=1)  # as servers that do not know `n`
  assert extract(None, '--temperature=0.7', '--samples=5').status == 0
  assert server.stats()['answered'] == 20
  found = command.answers(out)
  assert len(found) == 50
  slots = {(line['id'], line['sample']) for line in found}
  assert slots == {(f'train-{i}', s) for i in range(10) for s in range(5)}
  assert sum(line['usage'] is not None for line in found) == 30


def test_the_majority_of_samples_decides(server, extract, out, tmp_path):
  flags = ['--temperature=0.7', '--samples=5']
  assert extract(20, *flags).status == 0
  examples = sources.Examples(
    sums.BENCHMARK, tmp_path, split='train', completions=out
  )
  for number, example in enumerate(examples):
    gold = int(sums.row(number)['a'])
    digit = number % 10
    if digit == sums.UNREADABLE_DIGIT:
      assert (example.status, example.votes) == ('no_marker', 0)
      continue
    wrong = digit in (sums.WRONG_DIGIT, sums.MISLED_DIGIT)
    assert example.llm_label == str(gold + wrong)
    misled = digit == sums.MISLED_DIGIT
    # The first rationale of the majority, not the first of all.
    assert example.rationale.startswith('Take 1:' if misled else 'Take 0:')
    assert (example.votes, example.samples) == (3 if misled else 5, 5)
  done = extract(None, *flags, '--rationalize')
  assert '6 of 6' in done.output, done.output


def test_the_second_pass_asks_about_wrong_rows_only(server, extract, out):
  assert extract(40).status == 0
  server.configure()
  done = extract(None, '--rationalize')
  assert done.status == 0, done.output
  hinted = command.lines(out, completions_file.RATIONALIZATION)
  unhappy = (sums.WRONG_DIGIT, sums.UNREADABLE_DIGIT)
  wrong = {i for i in range(40) if i % 10 in unhappy}
  assert {line['id'] for line in hinted} == {f'train-{i}' for i in wrong}
  for line in hinted:
    row = sums.row(int(line['id'].removeprefix('train-')))
    assert line['hint'] == row['a']
    right = f'The answer is {row["a"]}.' in line['text']
    assert right == (not line['id'].endswith(str(sums.UNREADABLE_DIGIT)))
  assert extract(None, '--rationalize').status == 0
  assert server.stats()['answered'] == len(wrong)


def test_the_dry_run_prints_the_costs_and_does_nothing(server, extract, out):
  prices = ['--price_in=1', '--price_out=2']
  done = extract(100, '--dry_run', *prices)
  assert done.status == 0
  assert 'to do    100 calls for 100 completions; 0 are' in done.output
  assert 'money    about 0.01' in done.output
  assert not out.exists() and not server.stats()['calls']
  done = extract(None, '--limit=25', *prices)
  assert done.status == 0
  # On a busy machine there are lines before the last one.
  [last] = [x for x in done.output.splitlines() if '25 of 25' in x]
  assert 'money' in last and '(estimate)' not in last
  before = out.read_bytes()
  assert '25 are answered already' in extract(None, '--dry_run').output
  assert out.read_bytes() == before


def test_the_budget_is_never_exceeded_and_the_run_goes_on_later(
  server, extract, out
):
  def cost():
    usage = [line['usage'] for line in command.answers(out)]
    prompt = sum(u['prompt_tokens'] for u in usage)
    return (prompt + 10 * sum(u['completion_tokens'] for u in usage)) / 1e6

  prices = ['--price_in=1', '--price_out=10', '--max_tokens=40']
  done = extract(100, *prices, '--budget=0.015')
  assert done.status == 3, done.output
  assert 'stopped: ' in done.output and 'the budget of 0.0150' in done.output
  assert 0.013 < cost() <= 0.015
  asked = server.stats()['answered']
  assert asked == len(command.answers(out)) < 100
  assert extract(None, *prices, '--budget=0.015').status == 3
  assert server.stats()['answered'] == asked
  assert extract(None, *prices, '--budget=1').status == 0
  assert server.stats()['answered'] == 100 == len(command.answers(out))


def test_the_key_is_nowhere(server, extract, out, tmp_path):
  """In no output, log or file, though the server echoes it everywhere."""
  logging = {'OPENAI_LOG': 'debug'}
  flags = ['--debug', '--verbosity=1']
  server.teach({'Q: ' + sums.row(1)['q']: f'Authorization: {command.KEY}'})
  assert extract(3, *flags, environment=logging).status == 0
  server.configure(status=400, message='you sent {key}', code='{key}')
  assert extract(8, *flags, environment=logging).status == 1
  server.configure(status=401, message='Incorrect API key: {key}')
  done = extract(9, *flags, environment=logging)
  assert done.status not in (0, 2) and 'Traceback' in done.output
  for path in tmp_path.rglob('*'):
    if path.is_file():
      assert command.KEY.encode() not in path.read_bytes(), path
  assert 'Authorization: [key]' in out.read_text()
  assert 'Incorrect API key: [key]' in done.output
  assert 'receive_response_headers.complete' in done.output
  assert json.dumps('x-echo').strip('"') in done.output.lower()
