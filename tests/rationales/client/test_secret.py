# SPDX-License-Identifier: Apache-2.0
"""The key: read from the environment, masked wherever it shows."""

import json
import logging

import pytest

from dsbs_jax import contract
from rationales.client import secret

KEY = 'sk-test"0123\\456789'


def test_a_key_prints_as_a_mask():
  key = secret.Secret(KEY)
  assert KEY not in f'{key} {key!r} {[key]}' and key.reveal() == KEY


def test_every_spelling_is_masked():
  key = secret.Secret(KEY)
  text = f'a {KEY} b {json.dumps({"k": KEY})} c Bearer {KEY}'
  masked = key.redact(text)
  assert KEY not in masked and json.dumps(KEY)[1:-1] not in masked
  assert masked.count('[key]') == 3 and masked.startswith('a [key] b {')


@pytest.mark.parametrize('word', ['', 'none', 'EMPTY'])
def test_words_that_are_no_keys_are_not_masked(word):
  text = 'none of the EMPTY boxes'
  assert secret.Secret(word).redact(text) == text


def test_logs_are_masked_at_every_level(monkeypatch, caplog):
  monkeypatch.setattr(
    logging, '_logRecordFactory', logging.getLogRecordFactory()
  )
  secret.Secret(KEY).guard_logs()
  with caplog.at_level(logging.DEBUG):
    log = logging.getLogger('anything')
    log.debug('headers %s', {'authorization': f'Bearer {KEY}'})
    log.error('plain %d', 5)
    log.error('its values do not fit: %d', KEY)
  assert KEY not in caplog.text and '[key]' in caplog.text
  assert 'plain 5' in caplog.text and "fit: %d ('[key]',)" in caplog.text


def test_the_environment_is_read_and_checked(monkeypatch):
  monkeypatch.setenv('SOME_KEY', f' {KEY}\n')
  assert secret.from_environment('SOME_KEY').reveal() == KEY
  monkeypatch.delenv('SOME_KEY')
  assert secret.from_environment('SOME_KEY').reveal() == ''
  monkeypatch.setenv('SOME_KEY', 'sk-…0123456789')
  with pytest.raises(
    contract.UserError, match='SOME_KEY is no API key'
  ) as caught:
    secret.from_environment('SOME_KEY')
  assert '…' not in str(caught.value)
