# SPDX-License-Identifier: Apache-2.0
"""A student finds its question in a prompt, and parsers find its answer."""

import pytest

from dsbs_jax.data import register
from dsbs_jax.data.source import sources
from dsbs_jax.inference import predictor
from dsbs_jax.serving import completion_format, errors
from rationales import prompt as prompt_lib
from tests.data import toy

NAMES = ('anli1', 'asdiv', 'cqa', 'esnli', 'svamp', 'svamp_asdiv')
WHY = 'As one can see.'


def make(name='parcels', *, prompt='{input}', rationales=True, **options):
  return completion_format.for_benchmark(
    register.benchmark(name),
    prompt=prompt,
    rationales=rationales,
    **{'completion': None, **options},
  )


def rows(name):
  benchmark = register.benchmark(name)
  return list(sources.read_rows(benchmark, toy.ARCHIVE, 'test'))[:3]


@pytest.mark.parametrize('name', NAMES)
def test_the_benchmarks_parser_reads_real_labels_back(name):
  shown, benchmark = make(name), register.benchmark(name)
  for row in rows(name):
    prediction = predictor.Prediction(row.gt_label, 0.5, WHY)
    found = benchmark.parse(shown.completion_text(prediction))
    assert found.rationale.strip() == WHY
    if row.gt_label != '9:1':  # a ratio, which is no arithmetic
      score = benchmark.metric([row.gt_label], [found.label])
      assert score == {'accuracy': 100.0}
      assert shown.round_trips(prediction)


def test_an_answer_that_its_parser_cannot_read_is_noticed():
  said = 'So the answer is first. So'
  assert not make().round_trips(predictor.Prediction('first', 0.5, said))
  assert not make().round_trips(predictor.Prediction('', 0.0, WHY))


def test_what_a_student_says_is_put_in_as_it_is():
  prediction = predictor.Prediction('{rationale}', 0.5, '{label} \\1')
  assert (
    make().completion_text(prediction)
    == '{label} \\1 So the answer is {rationale}.'
  )


def test_a_student_without_rationales_completes_with_the_label():
  shown = make('esnli', rationales=False)
  prediction = predictor.Prediction('neutral', 0.5)
  assert shown.completion_text(prediction) == 'Answer: neutral'
  assert register.benchmark('esnli').parse(
    shown.completion_text(prediction)
  ).label == ('neutral')


@pytest.mark.parametrize('name', ['svamp', 'asdiv', 'cqa'])
def test_the_last_question_is_found_behind_worked_examples(name):
  teacher = prompt_lib.load(prompt_lib.FOLDER / f'{name}.json')
  assert len(teacher.exemplars) > 3
  shown = make(name, prompt='Q: {input}\nA:')
  for row in rows(name):
    fields = {**row.fields, 'rendered': row.input}
    text = prompt_lib.completion_text(teacher, fields)
    assert text.count('Q: ') > 3
    assert shown.plain_input(text) == row.input
    *_, last = prompt_lib.chat_messages(teacher, fields)
    assert shown.chat_input(last['content']) == row.input


@pytest.mark.parametrize('name', NAMES)
def test_the_students_prompt_is_the_input_as_it_is(name):
  student = prompt_lib.load(prompt_lib.FOLDER / 'student.json')
  shown = make(name)
  for row in rows(name):
    fields = {**row.fields, 'rendered': row.input}
    assert shown.plain_input(prompt_lib.completion_text(student, fields)) == (
      row.input
    )
    (message,) = prompt_lib.chat_messages(student, fields)
    assert shown.chat_input(message['content']) == row.input


@pytest.mark.parametrize('text', ['A: no question', 'Q: no end', 'Q: a\nA: b'])
def test_a_prompt_of_another_form_is_refused(text):
  shown = make(prompt='Q: {input}\nA:')
  with pytest.raises(errors.APIError, match='PROMPT') as refused:
    shown.plain_input(text)
  assert refused.value.status == 400


@pytest.mark.parametrize(
  ('options', 'reason'),
  [
    ({'prompt': 'Q:'}, 'PROMPT'),
    ({'prompt': '{input}{input}'}, 'PROMPT'),
    ({'completion': '{rationale}'}, 'COMPLETION'),
    ({'completion': '{label}'}, 'COMPLETION'),
    ({'completion': '{rationale} Answer: {label}'}, 'parser of .* reads'),
    ({'completion': '{rationale} So the answer is {label}'}, 'parser of'),
  ],
)
def test_forms_that_cannot_work_are_refused_at_the_start(options, reason):
  with pytest.raises(ValueError, match=reason):
    make(**options)


def test_a_benchmark_without_a_form_has_no_completions():
  assert (
    completion_format.for_benchmark(
      toy.BENCHMARK, prompt='{input}', completion=None, rationales=True
    )
    is None
  )
