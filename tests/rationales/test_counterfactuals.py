# SPDX-License-Identifier: Apache-2.0
"""The LLM argues for one wrong label per row, and prepare joins what it said."""

import json

import pytest

from dsbs_jax.data.source import sources
from rationales.record import completions_file
from tests.rationales import command, sums

FLAG = '--counterfactuals'
NUM_ROWS = 9
WRONG, UNREADABLE = sums.WRONG_DIGIT, sums.UNREADABLE_DIGIT
REFUSED = 'train-5'


@pytest.fixture
def choose(extract, tmp_path):
  """Runs the command on multiple choice."""

  def run(num_rows, *flags):
    sums.write(tmp_path, NUM_ROWS if num_rows is None else num_rows)
    prompt = sums.PROMPT | {'benchmark': ''}
    path = tmp_path / 'choices_prompt.json'
    path.write_text(json.dumps(prompt))
    chosen = '--benchmark=sum_choices', f'--prompt={path}'
    return extract(None, *chosen, *flags)

  return run


def wrong_label(example_id):
  """One of a row's wrong labels, and another one."""
  number = int(example_id.removeprefix('train-'))
  return [str(int(sums.row(number)['a']) + more) for more in (2, 3, 1)]


def teach(server, asked=FLAG):
  """The LLM argues for any label that it is told is right, except of one row."""
  answers = {}
  for number in range(NUM_ROWS):
    row = sums.row(number)
    for label in wrong_label(f'train-{number}'):
      said = row['a'] if f'train-{number}' == REFUSED else label
      question = f'Q: {row["q"]}\nHint: it is {label}.'
      answers[question] = f'Counting makes {said}. The answer is {said}.'
  server.teach(answers)


def asked(out):
  found = command.lines(out, completions_file.COUNTERFACTUAL)
  return {line['id']: line['hint'] for line in found}


def examples(out):
  found = sources.Examples(
    sums.CHOICES, out.parents[1], split='train', completions=out
  )
  return {e.example_id: e.counterfactual for e in found}, found.counts


def test_each_readable_row_is_asked_for_one_wrong_label_once(
  server, choose, out
):
  assert choose(None).status == 0
  teach(server)
  shown = choose(None, FLAG, '--preview=1')
  assert 'Q: What is 0 + 0?\nHint: it is ' in shown.output, shown.output
  # Exemplars show how a hint is argued for.
  assert 'Q: What is 1 + 2?\nHint: it is 3.' in shown.output
  server.configure()
  done = choose(None, FLAG)
  assert done.status == 0 and '(asked for: ' in done.output, done.output
  found = asked(out)
  assert len(found) == server.stats()['answered'] == NUM_ROWS - 1
  assert f'train-{UNREADABLE}' not in found
  # Neither the human label nor the LLM's, which is one more in one row.
  for example_id, label in found.items():
    wrong = wrong_label(example_id)
    assert label in (wrong[:2] if example_id == f'train-{WRONG}' else wrong)
  assert len({int(v) - 8 * int(k[6:]) for k, v in found.items()}) > 1  # drawn
  joined, counts = examples(out)
  assert joined == {
    f'train-{number}': ()
    if number in (5, UNREADABLE)
    else (label := found[f'train-{number}'], f'Counting makes {label}.')
    for number in range(NUM_ROWS)
  }
  # Other counts are those of completions alone.
  assert counts.completions == NUM_ROWS and counts.models == {'teacher': 9}
  assert (counts.counterfactuals, counts.counterfactuals_asked) == (7, 8)
  done = choose(None, FLAG)
  assert '0 calls' in done.output and server.stats()['answered'] == 8
  # Who argued for another label is asked again on request, for the same one.
  label = found[REFUSED]
  question = f'Q: {sums.row(5)["q"]}\nHint: it is {label}.'
  server.teach({question: f'It is so. The answer is {label}.'})
  done = choose(None, FLAG, '--retry=unparsed')
  assert done.status == 0 and '1 calls for 1' in done.output, done.output
  assert examples(out)[0][REFUSED] == (label, 'It is so.')


def test_what_the_llm_comes_to_say_itself_is_no_wrong_label(
  server, choose, out
):
  assert choose(None).status == 0
  teach(server)
  assert choose(None, FLAG).status == 0
  label = asked(out)['train-0']
  changed = command.answers(out)[0] | {
    'text': f'They make more. The answer is {label}.',
    'retry': True,
  }
  with out.open('a') as file:
    file.write(json.dumps(changed) + '\n')
  assert examples(out)[0]['train-0'] == ()
  done = choose(None, FLAG)
  assert '1 calls for 1' in done.output, done.output
  found = examples(out)[0]['train-0'][0]
  assert found in wrong_label('train-0') and found != label


def test_a_prompt_of_the_users_own_asks_alone(server, choose, out, tmp_path):
  assert choose(3).status == 0
  own = tmp_path / 'argue.txt'
  own.write_text('{input} Argue that it is {label}!')
  flags = FLAG, f'--counterfactual_prompt={own}'
  shown = choose(3, *flags, '--preview=1').output
  assert 'What is 0 + 0? Argue that it is ' in shown and 'Hint' not in shown
  assert choose(3, *flags).status == 0
  done = choose(3, FLAG)
  assert done.status == 2 and 'argued about already, but by an' in done.output
  own.write_text('{input} Argue!')
  done = choose(3, *flags)
  assert done.status == 2 and 'has no {label}' in done.output


def test_what_cannot_be_asked_is_refused(choose, extract, tmp_path):
  done = choose(3, FLAG, '--preview=1')
  assert done.status == 2 and 'without --counterfactuals first' in done.output
  done = choose(3, FLAG, '--verdicts')
  assert done.status == 2 and '--verdicts and --counterf' in done.output
  done = extract(3, FLAG)
  assert done.status == 2 and "labels of 'sums' are open" in done.output
  path = tmp_path / 'plain.json'
  path.write_text(json.dumps(sums.PROMPT | {'hint': '', 'benchmark': ''}))
  done = choose(3, FLAG, f'--prompt={path}')
  assert done.status == 2 and 'has no "hint" with {label}' in done.output


def test_a_run_whose_llm_never_argues_as_asked_ends(server, choose, out):
  rows = 30
  assert choose(rows).status == 0
  done = choose(rows, FLAG)  # the LLM adds, whatever the hint is
  assert done.status == 2, done.output
  assert '20 answers has the wrong label that was asked for' in done.output
  assert len(asked(out)) == 20
