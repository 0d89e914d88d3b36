# SPDX-License-Identifier: Apache-2.0
"""The LLM judges its own rationales once, and prepare joins what it said."""

import json

import pytest

from dsbs_jax.data import parsing
from dsbs_jax.data.source import completions, sources
from rationales import verdicts
from rationales.record import completions_file
from tests.rationales import command, sums

WRONG = f'train-{sums.WRONG_DIGIT}'
UNCLEAR = 'train-5'


def questions(out, template=verdicts.DEFAULT):
  """Row's id -> what the LLM is asked about its completion."""
  asked = {}
  for line in command.answers(out):
    said = sums.BENCHMARK.parse(line['text'])
    if line['kind'] == completions_file.COMPLETION and isinstance(
      said, parsing.Parsed
    ):
      row = sums.row(int(line['id'].removeprefix('train-')))
      asked[line['id']] = verdicts.TEMPLATE.fill(
        template,
        {
          'input': row['q'],
          'rationale': said.rationale,
          'label': said.label,
        },
      )
  return asked


def teach(server, out):
  said = {WRONG: 'No, the sum is wrong.', UNCLEAR: 'Hm.'}
  server.teach(
    {
      question: said.get(example_id, '**Yes**, it is.')
      for example_id, question in questions(out).items()
    }
  )


def examples(out):
  found = sources.Examples(
    sums.BENCHMARK, out.parents[1], split='train', completions=out
  )
  return [example.verdict for example in found], found.counts


def test_every_readable_completion_is_judged_once(server, extract, out):
  assert extract(9).status == 0
  teach(server, out)
  shown = extract(None, '--verdicts', '--preview=2')
  assert 'Question: What is 0 + 0?' in shown.output, shown.output
  server.configure()
  done = extract(None, '--verdicts')
  assert done.status == 0, done.output
  assert 'verdict    yes' in done.output
  judged = command.lines(out, completions_file.VERDICT)
  # One completion is none that the benchmark can read.
  assert len(judged) == server.stats()['answered'] == 8
  assert examples(out)[0] == [
    *('yes', 'yes', 'yes', 'no', 'yes', '', 'yes', '', 'yes')
  ]
  counts = examples(out)[1].to_dict()['verdicts']
  assert counts == {'yes': 6, 'no': 1, 'unreadable': 1}
  done = extract(None, '--verdicts')
  assert '0 calls' in done.output and server.stats()['answered'] == 8
  # What is unclear is asked again on request.
  server.teach({questions(out)[UNCLEAR]: 'yes'})
  done = extract(None, '--verdicts', '--retry=unparsed')
  assert done.status == 0 and '1 calls for 1' in done.output, done.output
  assert examples(out)[0][5] == 'yes'


def test_a_completion_that_was_replaced_is_judged_again(server, extract, out):
  server.configure(cut=['What is 4 +'])
  assert extract(9).status == 0
  server.configure()
  teach(server, out)
  assert extract(None, '--verdicts').status == 0
  replaced = command.answers(out)[0] | {
    'text': 'They make zero. The answer is 0.',
    'retry': True,
  }
  with out.open('a') as file:
    file.write(json.dumps(replaced) + '\n')
  assert examples(out)[0][0] == ''
  done = extract(None, '--verdicts', '--dry_run')
  assert '1 calls for 1' in done.output, done.output


def test_verdicts_of_another_prompt_are_not_mixed(
  server, extract, out, tmp_path
):
  assert extract(3).status == 0
  teach(server, out)
  assert extract(None, '--verdicts').status == 0
  other = tmp_path / 'judge.txt'
  other.write_text('{input} {rationale} Right?')
  flags = '--verdicts', f'--verdict_prompt={other}'
  done = extract(None, *flags)
  assert done.status == 2 and 'judged already, but by another' in done.output
  assert extract(None, *flags, '--force').status == 0
  other.write_text('{input} Right?')
  done = extract(None, *flags)
  assert done.status == 2 and 'has no {rationale}' in done.output
  other.write_bytes(b'\xef\xbb\xbf{input}\n{rationale}\r\n')
  template = verdicts.TEMPLATE.load(str(other))
  assert template == '{input}\n{rationale}\n'
  other.write_bytes(b'{input}\ncaf\xe9 {rationale}')
  done = extract(None, *flags)
  assert done.status == 2 and 'judge.txt has the byte 0xe9' in done.output
  other.write_text('{input} {rationale} {gold}')
  assert 'cannot be filled' in extract(None, *flags).output
  done = extract(None, '--verdicts', '--rationalize')
  assert done.status == 2 and 'are two passes' in done.output


def test_without_completions_there_is_nothing_to_judge(server, extract):
  done = extract(3, '--verdicts', '--preview=1')
  assert done.status == 2 and 'without --verdicts first' in done.output


@pytest.mark.parametrize(
  ('text', 'verdict'),
  [
    ('yes', 'yes'),
    ('**No.** The sum is wrong, yes.', 'no'),
    ('Nothing is known', 'unreadable'),
    ('', 'unreadable'),
  ],
)
def test_the_first_yes_or_no_is_the_verdict(text, verdict):
  assert parsing.verdict(text) == verdict


def test_a_digest_is_of_any_text():
  assert completions.digest('\ud800') != completions.digest('')
