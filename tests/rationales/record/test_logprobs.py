# SPDX-License-Identifier: Apache-2.0
"""Alternatives of the answer's tokens are kept, and become soft labels."""

import pytest

from dsbs_jax.data import soft_labels
from dsbs_jax.data.source import sources
from rationales.record import calls
from tests.rationales import command, sums

LABELS = tuple(str(number) for number in range(80))


def examples(out):
  found = sources.Examples(
    sums.closed(*LABELS), out.parents[1], split='train', completions=out
  )
  return list(found), found.counts


@pytest.mark.parametrize('endpoint', ['chat', 'completions'])
def test_alternatives_of_the_answer_become_soft_labels(extract, out, endpoint):
  done = extract(9, '--logprobs=20', f'--endpoint={endpoint}')
  assert done.status == 0, done.output
  for line in command.answers(out):
    if 'logprobs' in line:
      (token,) = line['logprobs']
      assert f'The answer is{token[0]}.' in line['text']
  found, counts = examples(out)
  # One completion is none that the benchmark can read.
  assert (counts.answered, counts.soft_labels) == (9, 8)
  for example in found:
    if example.status == 'no_marker':
      assert example.label_probs == ()
      continue
    answer = int(example.llm_label)
    expected = {answer: 2 / 3, answer + 1: 1 / 3}
    told = {n: p for n, p in enumerate(example.label_probs) if p}
    assert told == pytest.approx(expected)
  refused = extract(None)
  assert refused.status == 2 and 'logprobs' in refused.output


def test_where_the_server_tells_none_labels_stay_hard(server, extract, out):
  server.configure(logprobs=False)
  assert extract(5, '--logprobs=20').status == 0
  found, counts = examples(out)
  assert (counts.answered, counts.soft_labels) == (5, 0)
  assert not any(example.label_probs for example in found)


def test_alternatives_are_replayed(extract, out, tmp_path):
  assert extract(4, '--logprobs=20').status == 0
  other = tmp_path / 'out' / 'again.jsonl'
  flags = '--backend=replay', f'--replay={out}', f'--out={other}'
  assert extract(None, '--logprobs=20', *flags).status == 0
  kept, again = (
    {line['id']: line.get('logprobs') for line in command.answers(file)}
    for file in (out, other)
  )
  assert len(kept) == 4 and kept == again and all(kept.values())


@pytest.mark.parametrize(
  'wrong',
  [7, 'text', [[1]], [['a', 'x', {}]], [['a', 9.0, {}]], [['a', -1.0, None]]],
)
def test_what_is_no_log_probability_is_left_out(wrong):
  assert soft_labels.logprobs(wrong) == ()


def test_a_malformed_part_of_an_answer_is_no_part_of_it():
  assert (
    calls.read_logprobs({'logprobs': {'content': [{'token': 'a'}]}}) is None
  )
  nameless = {'token': None, 'logprob': -0.1, 'top_logprobs': []}
  assert calls.read_logprobs({'logprobs': {'content': [nameless]}}) is None
  ids = {'tokens': [7], 'token_logprobs': [-0.1], 'top_logprobs': [{'7': -0.1}]}
  assert calls.read_logprobs({'logprobs': ids}) is None
  ids |= {'tokens': ['a'], 'top_logprobs': [[{'token': 'a', 'logprob': -0.1}]]}
  assert calls.read_logprobs({'logprobs': ids}) is None
  assert calls.read_logprobs({'logprobs': None}) is None
  assert calls.read_logprobs({}) is None
