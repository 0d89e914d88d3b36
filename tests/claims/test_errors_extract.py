# SPDX-License-Identifier: Apache-2.0
"""Wrong flags, prompts and files of stage 1: one clear error, status 2."""

import os

import pytest

from tests.claims import doors
from tests.claims.errors import REPOSITORY, refused, write

CASES = {
  'no_model': (('--model=',), ('--model is missing',)),
  'no_prompt': (('--prompt=/nowhere.json',), ('/nowhere.json', '--prompt')),
  'broken_prompt': (
    ('--prompt={place}/p.json',),
    ('p.json is not JSON', 'give'),
  ),
  'latin_prompt': (
    ('--prompt={place}/l.json',),
    ('l.json is not JSON', '0xff'),
  ),
  'empty_prompt': (
    ('--prompt={place}/e.json',),
    ('e.json has None as "instruction"', 'Correct the file'),
  ),
  'folder_for_prompt': (('--prompt={place}',), ('Is a directory', 'a file')),
  'split': (('--split=trian',), ("split 'trian'", 'train, test')),
  'rows': (('--source={place}',), ("no train rows of 'cqa'", 'cqa_train.json')),
  'samples': (('--samples=0',), ('--samples is 0', '1 or more')),
  'equal_samples': (('--samples=2',), ('--temperature=0', 'such as 0.7')),
  'temperature': (
    ('--temperature=nan',),
    ('--temperature is nan', '0 or more'),
  ),
  'limit': (('--limit=-1',), ('--limit is -1', '1 row')),
  'concurrency': (('--concurrency=0',), ('--concurrency is 0', 'at least 1')),
  'rate': (('--rpm=nan',), ('--rpm nan', '0 sets no limit')),
  'timeout': (('--timeout=nan',), ('--timeout is nan', 'more than 0')),
  'price': (('--price_in=nan',), ('--price_in is nan', 'money per million')),
  'budget': (('--budget=1',), ('no price is known', '--price_in')),
  'extra': (('--extra=x',), ("--extra is 'x'", 'JSON object')),
  'exemplars': (('--exemplars=99',), ('--exemplars is 99', 'ask for fewer')),
  'connections': (('--concurrency=2000',), ('at most 1000',)),
  'backend': (('--backend=x',), ('--backend=x', 'http|batch|replay')),
  'address': (('--base_url=host',), ("--base_url is 'host'", 'http://')),
  'replay': (('--backend=replay',), ('--replay=FILE',)),
  'batch': (('--batch_size=0',), ('--batch_size is 0', 'at least 1')),
  'rationalize': (('--rationalize',), ('out.jsonl does not exist', 'first')),
  'long_prompt': (
    ('--max_prompt_tokens=5',),
    ('cqa_train.json:1', 'at most 5', '--exemplars'),
  ),
  'flag': (('--modle=x',), ("'modle'", 'Did you mean: model')),
}


def extract(tmp_path, *flags):
  """Calls extract on the rows of the small archive."""
  return doors.call(
    'rationales.extract',
    '--benchmark=cqa',
    f'--source={REPOSITORY / "tests/data/fixtures/archive"}',
    f'--out={tmp_path / "out.jsonl"}',
    '--model=m',
    *flags,
  )


@pytest.mark.parametrize('name', CASES)
def test_extract_says_what_is_wrong(tmp_path, name):
  flags, parts = CASES[name]
  write(tmp_path, {'p.json': '{', 'l.json': b'\xff', 'e.json': '{}'})
  ended = extract(
    tmp_path,
    '--dry_run',
    *(flag.replace('{place}', str(tmp_path)) for flag in flags),
  )
  refused(ended, *parts)
  assert not (tmp_path / 'out.jsonl').exists()


@pytest.mark.parametrize('flag', ['source', 'prompt', 'out'])
def test_a_pipe_for_a_file_is_refused(tmp_path, flag):
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  ended = extract(tmp_path, '--dry_run', f'--{flag}={pipe}')
  refused(ended, f'{pipe} is no regular file', 'Give a file')


@pytest.mark.parametrize(
  'content, parts',
  [
    ('2 + 2\n', ('out.jsonl begins with', 'no completions file', '--out')),
    (
      '{"kind": "header", "format": 9, "settings": {}}\n',
      ('has the format 9, expected 1', '--out'),
    ),
    (
      '{"kind": "header", "format": 1, "settings": {}}\n{"kind"}\n',
      ('out.jsonl:2 is', 'repair or delete'),
    ),
  ],
)
def test_a_file_that_is_not_ours_is_left_alone(tmp_path, content, parts):
  write(tmp_path, {'out.jsonl': content})
  ended = extract(tmp_path, '--base_url=http://127.0.0.1:9/v1')
  refused(ended, *parts)
  assert (tmp_path / 'out.jsonl').read_text() == content
