# SPDX-License-Identifier: Apache-2.0
"""Why a server refused a run's first call: address, model or samples."""

import json
import re
import urllib.parse

import httpx2
import openai

from rationales.client import failures, server_config
from rationales.record import calls

_SECONDS = 10.0
_LISTED_MODELS = 10
# What servers call the number of completions per request.
_CHOICES = re.compile(r"""['"`]n['"`]|\bn\b|\bchoices\b|best_of""")


async def explain(
  client: openai.AsyncOpenAI,
  server: server_config.ServerConfig,
  sampling: calls.Sampling,
  *,
  call: calls.Call,
  error: failures.PermanentError,
) -> str | None:
  """What to change so that calls are answered; None where that is not clear."""
  many = error.status in (400, 422) and len(call.samples) > 1
  if many and _CHOICES.search(str(error)):
    return (
      f'one call asked for {len(call.samples)} samples (n): give'
      ' --samples_per_call=1, or what the server allows'
    )
  about_model = error.status == 400 and sampling.model in str(error)
  if error.status not in (404, 405) and not about_model:
    return None  # perhaps this row's own fault, such as its length
  found = await _models(client)
  if found is None and error.status != 400:
    return await _other_address(client, server)
  if found and sampling.model not in found:
    shown = ', '.join(found[:_LISTED_MODELS])
    more = len(found) - _LISTED_MODELS
    return f'--model is {sampling.model!r}, and the server has {shown}' + (
      f' and {more} more' if more > 0 else ''
    )
  return None


async def _other_address(
  client: openai.AsyncOpenAI, server: server_config.ServerConfig
) -> str | None:
  """The same server with or without /v1, if that one answers."""
  url = server.base_url.rstrip('/')
  toggled = url.removesuffix('/v1') if url.endswith('/v1') else f'{url}/v1'
  for other in (toggled, urllib.parse.urljoin(url, '/v1')):
    if await _models(client.with_options(base_url=other)) is not None:
      return (
        f'nothing is at {server.public_url}, but the server answers at another'
        f' address: give --base_url={server_config.public(other)}'
      )
  return None


async def _models(client: openai.AsyncOpenAI) -> list[str] | None:
  """Names of the server's models; None if it does not say."""
  try:
    response = await client.with_options(timeout=_SECONDS).get(
      '/models', cast_to=httpx2.Response
    )
    listed = json.loads(response.content)['data']
    return [str(model['id']) for model in listed]
  except (openai.APIError, ValueError, TypeError, LookupError):
    return None
