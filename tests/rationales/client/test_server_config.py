# SPDX-License-Identifier: Apache-2.0
"""The address of a server is checked, and shown without its secrets."""

import pytest

from dsbs_jax import contract
from rationales.client import secret, server_config


def _config(base_url):
  return server_config.ServerConfig('http', base_url, secret.Secret('key'))


def test_the_recorded_address_hides_what_may_be_a_key():
  server = _config('https://u:pw@h.org:8/v1?api-key=abc')
  assert server.public_url == 'https://h.org:8/v1'


@pytest.mark.parametrize(
  'url', ['localhost:8000', 'ftp://x/v1', '', 'http://x:99999/v1', 'http://[x']
)
def test_a_bad_address_is_refused(url):
  with pytest.raises(contract.UserError, match='--base_url is'):
    _config(url)
