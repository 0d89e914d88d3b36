# SPDX-License-Identifier: Apache-2.0
"""A prompt whose own examples could not be read back is never sent."""

import json
import pathlib

import pytest

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import declared, register
from dsbs_jax.data.source import sources
from rationales import prompt, prompt_checks, prompt_template
from tests.rationales import command, sums


def _check(tmp_path, reader=sums.BENCHMARK, **changes):
  path = tmp_path / 'p.json'
  path.write_text(json.dumps(sums.PROMPT | changes))
  shown = prompt.load(path, benchmark=reader.name)
  prompt_checks.check(shown, reader, path)


@pytest.mark.parametrize('name', ['anli1', 'asdiv', 'cqa', 'esnli', 'svamp'])
def test_our_own_prompts_pass(name):
  path = prompt.FOLDER / f'{name}.json'
  with register.without_seqio():
    benchmark = benchmark_lib.find(name)
  prompt_checks.check(prompt.load(path, benchmark=name), benchmark, path)


def test_the_students_prompt_is_for_every_benchmark():
  path = prompt.FOLDER / 'student.json'
  shown = prompt.load(path, benchmark='sums')
  prompt_checks.check(shown, sums.BENCHMARK, path)


def _exemplars(**changes):
  first, second, *others = sums.PROMPT['exemplars']
  return [first, second | changes, *others]


@pytest.mark.parametrize(
  'changes, words',
  [
    (
      {'answer': '{rationale} It is {answer}.'},
      "p.json, exemplar 1: the parser of 'sums' reads no label (no_marker) in"
      " the answer '1 and 2 make 3. It is 3.', expected the exemplar's label"
      " '3'",
    ),
    (
      {'exemplars': _exemplars(label='seven')},
      'exemplar 2: the parser of',
    ),
    (
      {'exemplars': _exemplars(answer='8')},
      "reads '8' in the answer '2 and 5 make 7. The answer is 8.', expected the"
      " exemplar's label '7'",
    ),
    ({'instruktion': 'x'}, 'Did you mean "instruction"?'),
    ({'exemplars': _exemplars(lable='7')}, 'Did you mean "label"?'),
    (
      {'benchmark': 'cqa'},
      "a prompt for the benchmark 'cqa', expected one for",
    ),
    (
      {'exemplars': _exemplars(rationale='TODO: why')},
      'still has TODO in exemplar 2,',
    ),
  ],
)
def test_what_is_wrong_with_a_prompt_is_told(tmp_path, changes, words):
  with pytest.raises(contract.UserError) as error:
    _check(tmp_path, **changes)
  assert words in str(error.value), error.value


def test_labels_of_exemplars_are_of_the_closed_set(tmp_path):
  _check(tmp_path, sums.closed('3', '7', '950'))
  with pytest.raises(contract.UserError, match='exemplar 2 has the label .7.'):
    _check(tmp_path, sums.closed('3', '8', '950'))


def test_nothing_is_sent_with_such_a_prompt(server, extract, out, tmp_path):
  changes = {'answer': '{rationale} It is {answer}.'}
  path = tmp_path / 'wrong.json'
  path.write_text(json.dumps(sums.PROMPT | changes))
  done = extract(5, f'--prompt={path}')
  assert done.status == 2 and 'reads no label' in done.output, done.output
  assert not server.stats()['calls'] and not out.exists()


def _alone(spawner, tmp_path, *flags):
  """The command without server, model and output."""
  sums.write(tmp_path, 9)
  log = tmp_path / f'log{len(list(tmp_path.iterdir()))}.txt'
  arguments = [
    '--benchmark=sums',
    '--module=tests.rationales.sums',
    f'--source={tmp_path}',
    *flags,
  ]
  return command.start(spawner, arguments, log).wait()


@pytest.mark.parametrize('endpoint', ['chat', 'completions'])
def test_prompts_are_shown_as_they_are_sent(spawner, tmp_path, endpoint):
  path = sums.write(tmp_path, 9) / 'sums_prompt.json'
  flags = [f'--prompt={path}', f'--endpoint={endpoint}']
  done = _alone(spawner, tmp_path, *flags, '--preview=2')
  assert done.status == 0, done.output
  shown = prompt.select(prompt.load(path), None, 0)
  for index in range(2):
    row = sums.row(index)
    assert f'=== train-{index} ({tmp_path}/sums_train.json:{index + 1})' in (
      done.output
    )
    assert f"human label '{row['a']}'" in done.output
    text = prompt.completion_text(shown, row)
    if endpoint == 'chat':
      text = ''.join(
        f'--- {turn["role"]}\n{turn["content"]}\n'
        for turn in prompt.chat_messages(shown, row)
      )
    assert text in done.output
  assert 'train-2' not in done.output
  done = _alone(spawner, tmp_path, *flags, '--preview=1', '--rationalize')
  assert f'Hint: it is {sums.row(0)["a"]}.' in done.output
  assert (
    'error: --preview is -1'
    in _alone(spawner, tmp_path, *flags, '--preview=-1').output
  )


def test_a_prompt_is_made_from_three_rows(spawner, tmp_path):
  path = pathlib.Path(tmp_path / 'mine.json')
  done = _alone(spawner, tmp_path, f'--write_prompt={path}')
  assert done.status == 0, done.output
  assert 'sums_train.json:1, ' in done.output and '--preview=3' in done.output
  made = json.loads(path.read_text())
  rows = [sums.row(index) for index in range(3)]
  assert [e['input'] for e in made['exemplars']] == [r['q'] for r in rows]
  assert [e['label'] for e in made['exemplars']] == [r['a'] for r in rows]
  assert made['answer'] == '{rationale} The answer is {answer}.'
  unwritten = _alone(spawner, tmp_path, f'--prompt={path}', '--preview=1')
  assert unwritten.status == 2
  assert 'TODO in instruction, exemplar 1, exemplar 2' in unwritten.output
  path.write_text(path.read_text().replace('TODO: ', ''))
  done = _alone(spawner, tmp_path, f'--prompt={path}', '--preview=1')
  assert done.status == 0, done.output
  # It is the user's now.
  done = _alone(spawner, tmp_path, f'--write_prompt={path}')
  assert done.status == 2 and 'mine.json exists' in done.output


def test_a_template_of_an_answer_in_json_is_read_back(tmp_path):
  said = declared.Description(
    name='json',
    source=str(tmp_path),
    splits={'train': ('rows.csv',)},
    input='{q}',
    label='{a}',
    answer='{"answer": "{label}"}',
  )
  benchmark = declared.make(said)
  (tmp_path / 'rows.csv').write_text('q,a\n2?,yes\n3?,no\n4?,no\n')
  rows = sources.read_rows(benchmark, tmp_path, 'train')
  path = tmp_path / 'made.json'
  prompt_template.write(path, benchmark, rows)
  path.write_text(path.read_text().replace('TODO: ', ''))
  shown = prompt.load(path)
  prompt_checks.check(shown, benchmark, path)
  text = shown.exemplar_answer(shown.exemplars[0])
  assert text == 'why the label is right. {"answer": "yes"}'


def test_exemplars_of_a_template_differ_in_their_labels(spawner, tmp_path):
  rows = [{'q': f'What is {n} + 0?', 'a': str(n // 3)} for n in range(9)]
  sums.write(tmp_path, 9)
  path = tmp_path / 'rows' / 'sums_train.json'
  path.parent.mkdir()
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  flags = [f'--source={path.parent}', f'--write_prompt={tmp_path}/m.json']
  assert _alone(spawner, tmp_path, *flags).status == 0
  made = json.loads((tmp_path / 'm.json').read_text())
  assert [e['label'] for e in made['exemplars']] == ['0', '1', '2']
