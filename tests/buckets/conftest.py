# SPDX-License-Identifier: Apache-2.0
"""A store per test, and a cache that is empty as on another machine."""

import pytest

from dsbs_jax.data.remote import buckets, object_store
from tests.buckets import stores


@pytest.fixture(params=['gs', 's3'])
def store(request, monkeypatch, tmp_path):
  """The proxy of a store, which this process and its children speak to."""
  with stores.serve(request.param) as proxy:
    for name, value in stores.environment(proxy).items():
      monkeypatch.setenv(name, value)
    monkeypatch.setenv('DSBS_CACHE', str(tmp_path / 'cache'))
    forget()
    yield proxy
    forget()


def forget() -> None:
  """Makes this process as one that has just begun."""
  if object_store._filesystem.cache_info().currsize:
    for scheme in ('gs', 's3'):
      if object_store.is_installed(scheme):
        type(object_store._filesystem(scheme)).clear_instance_cache()
  object_store._filesystem.cache_clear()
  buckets._root.cache_clear()
  buckets._known.clear()
  buckets._versions.clear()
