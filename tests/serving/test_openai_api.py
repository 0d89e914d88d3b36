# SPDX-License-Identifier: Apache-2.0
"""OpenAI's own client gets what it expects, or an error it understands."""

import openai
import pytest

from dsbs_jax.inference import predictor
from dsbs_jax.serving import openai_api
from tests.serving import serving_stub

MESSAGES = [
  {'role': 'system', 'content': 'Explain, then answer.'},
  {'role': 'user', 'content': 'Q: pen or pot?'},
  {'role': 'assistant', 'content': 'A pen is light. So the answer is second.'},
  {'role': 'user', 'content': 'Q: lamp or drum?'},
]
SAID = 'lamp or drum? is why. So the answer is first.'


def student(inputs, rationales):
  """One that is cut off where it is asked about cutting."""
  return [
    predictor.Prediction('first', 0.5, f'{one.text} is why.', 'cut' in one.text)
    for one in inputs
  ]


@pytest.fixture(scope='module')
def client():
  with serving_stub.Stub(student) as stub:
    with openai.OpenAI(
      base_url=f'http://127.0.0.1:{stub.port}/v1', api_key='x', max_retries=0
    ) as client:
      yield client


def chat(client, **options):
  return client.chat.completions.create(
    **{'model': serving_stub.MODEL, 'messages': MESSAGES, **options}
  )


def plain(client, prompt='Q: lamp or drum?\nA:', **options):
  return client.completions.create(
    **{'model': serving_stub.MODEL, 'prompt': prompt, **options}
  )


def test_a_chat_is_answered_by_its_last_message(client):
  answer = chat(client, temperature=0, max_tokens=256, n=1, seed=3)
  (choice,) = answer.choices
  assert (choice.message.role, choice.message.content) == ('assistant', SAID)
  assert (choice.finish_reason, answer.model) == ('stop', serving_stub.MODEL)
  # The longer of the two prefixes, the input, and the end.
  assert answer.usage.prompt_tokens == len('[rationale] lamp or drum?') + 1
  assert answer.usage.completion_tokens == len(SAID)
  assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(SAID)
  assert answer.id != chat(client).id


def test_prompts_are_continued_in_their_order(client):
  prompts = [f'Q: a {i} or b?\nA:' for i in range(3)]
  answer = plain(client, prompts, temperature=0.0)
  assert [(c.index, c.text) for c in answer.choices] == [
    (i, f'a {i} or b? is why. So the answer is first.') for i in range(3)
  ]
  assert answer.object == 'text_completion'


def test_completions_end_where_the_request_says(client):
  (choice,) = plain(client, stop=['answer', 'So the', 'zebra']).choices
  assert (choice.text, choice.finish_reason) == (
    'lamp or drum? is why. ',
    'stop',
  )
  (choice,) = chat(client, max_completion_tokens=5).choices
  assert (choice.message.content, choice.finish_reason) == ('lamp ', 'length')
  (choice,) = plain(client, 'Q: cut?\nA:').choices
  assert choice.finish_reason == 'length'


def test_the_model_is_listed(client):
  assert [model.id for model in client.models.list()] == [serving_stub.MODEL]
  assert client.models.retrieve(serving_stub.MODEL).id == serving_stub.MODEL
  with pytest.raises(openai.NotFoundError, match='a-student'):
    client.models.retrieve('org/other')
  with pytest.raises(openai.NotFoundError, match='a-student'):
    chat(client, model='other')


@pytest.mark.parametrize(
  'options',
  [
    {'stream': True},
    {'n': 2},
    {'temperature': 0.7},
    {'top_p': 0.5},
    {'logprobs': True},
    {'tools': [{'type': 'function', 'function': {'name': 'f'}}]},
    {'response_format': {'type': 'json_object'}},
    {'max_tokens': 0},
    {'stop': ['a', 'b', 'c', 'd', 'e']},
    {'stop': [7]},
    {'presence_penalty': 1.0},
    {'extra_body': {'best_of': 2}},
    {'messages': []},
    {'messages': MESSAGES[:3]},
    {'messages': [{'role': 'poet', 'content': 'x'}]},
    {'messages': [{'role': 'user', 'content': 'lamp or drum?'}]},
    {'messages': [{'role': 'user', 'content': 'Q: '}]},
    {
      'messages': [
        {'role': 'user', 'content': [{'type': 'image_url', 'image_url': {}}]}
      ]
    },
  ],
  ids=lambda options: str(options)[:40],
)
def test_what_a_student_cannot_do_is_refused(client, options):
  with pytest.raises(openai.BadRequestError) as refused:
    chat(client, **options)
  assert refused.value.type == 'invalid_request_error'
  given = {**options, **options.get('extra_body', {})}
  assert any(
    name in str(refused.value.param) for name in given if name != 'extra_body'
  )


@pytest.mark.parametrize(
  'options',
  [{'echo': True}, {'suffix': 'x'}, {'logprobs': 1}, {'best_of': 3}],
  ids=str,
)
def test_so_it_is_where_a_text_is_continued(client, options):
  with pytest.raises(openai.BadRequestError) as refused:
    plain(client, **options)
  assert refused.value.param == next(iter(options))


def test_prompts_as_token_ids_are_refused(client):
  with pytest.raises(openai.BadRequestError, match='expected a string'):
    plain(client, [1, 2, 3])


def test_parts_of_text_are_one_message(client):
  parts = [
    {'type': 'text', 'text': 'Q: lamp'},
    {'type': 'text', 'text': ' or drum?'},
  ]
  (choice,) = chat(
    client, messages=[{'role': 'user', 'content': parts}]
  ).choices
  assert choice.message.content == SAID


def test_a_completion_has_at_most_the_tokens_that_were_asked_for():
  def count(text):
    return -(-len(text) // 3)

  text = 'abcdefghij'
  for limit in range(1, 6):
    request = openai_api.CompletionRequest([''], [''], False, limit, ())
    done = openai_api.truncate(text, request, cut=False, count=count)
    assert done.text == text[: 3 * limit]
    assert done.num_tokens == min(limit, 4)
    assert done.reason == ('length' if limit < 4 else 'stop')
