# SPDX-License-Identifier: Apache-2.0
"""python -m rationales.extract --benchmark=cqa --source=... --out=... --model=...

Stage 1 of the method: an LLM with a few-shot prompt writes a rationale and a
label for every row of a split. README.md in this folder explains the steps.
"""

import json
import pathlib

from absl import flags

from dsbs_jax import contract
from dsbs_jax.data import register
from dsbs_jax.runtime import command
from rationales import (
  backends,
  calls,
  costs,
  extraction,
  limiter,
  secret,
  worklist,
)
from rationales import prompt as prompt_lib

_BENCHMARK = flags.DEFINE_string('benchmark', None, 'Name of the benchmark.')
_MODULE = flags.DEFINE_string(
  'module', None, 'Module that registers a benchmark of your own.'
)
_SOURCE = flags.DEFINE_string('source', None, 'Folder or zip with the rows.')
_SPLIT = flags.DEFINE_string('split', 'train', 'train, validation or test.')
_OUT = flags.DEFINE_string('out', None, 'Completions file (.jsonl).')
_LIMIT = flags.DEFINE_integer('limit', None, 'Only the first so many rows.')

flags.DEFINE_enum('backend', 'http', backends.BACKENDS, 'Who answers, and how.')
flags.DEFINE_string(
  'base_url', 'https://api.openai.com/v1', 'The server, up to /v1.'
)
_KEY = flags.DEFINE_string(
  'key_variable', 'OPENAI_API_KEY', 'Environment variable with the API key.'
)
flags.DEFINE_string('replay', None, 'Completions file to answer from.')
_ENDPOINT = flags.DEFINE_enum(
  'endpoint', calls.CHAT, calls.ENDPOINTS, 'Chat, or plain completions.'
)
_MODEL = flags.DEFINE_string('model', None, "The server's name of the model.")
_TEMPERATURE = flags.DEFINE_float('temperature', 0.0, '0 is greedy.')
_SAMPLES = flags.DEFINE_integer('samples', 1, 'Completions per row.')
_PER_CALL = flags.DEFINE_integer(
  'samples_per_call',
  None,
  'Completions per request; all by default, so that a prompt is paid once.'
  ' Some servers take 1 only.',
)
_STOP = flags.DEFINE_multi_string(
  'stop',
  None,
  "Text that ends a completion; may be repeated. Default: the prompt's own"
  ' for plain completions, none for chat.',
)
_MAX_TOKENS = flags.DEFINE_integer(
  'max_tokens', 256, 'Longest completion; 0 leaves it to the server.'
)
_EXTRA = flags.DEFINE_string(
  'extra', '{}', 'JSON object with further fields of a request.'
)

_PROMPT = flags.DEFINE_string(
  'prompt', None, 'Prompt file; prompts/BENCHMARK.json by default.'
)
_EXEMPLARS = flags.DEFINE_integer('exemplars', None, 'How many; default all.')
_SEED = flags.DEFINE_integer('seed', 0, 'Selects exemplars and their order.')
_MAX_PROMPT = flags.DEFINE_integer(
  'max_prompt_tokens', 0, 'A longer prompt is an error; 0 allows all.'
)
_RATIONALIZE = flags.DEFINE_bool(
  'rationalize',
  False,
  'Second pass: ask again, with the human label as a hint, about rows whose'
  ' label was wrong.',
)

flags.DEFINE_integer('concurrency', 64, 'Calls at once, at most.')
flags.DEFINE_float('rpm', 0, 'Requests per minute; 0 sets no limit.')
flags.DEFINE_float('tpm', 0, 'Tokens per minute; 0 sets no limit.')
flags.DEFINE_float('timeout', 120.0, 'Seconds for one call.')
_ATTEMPTS = flags.DEFINE_integer('attempts', 8, 'Attempts per call.')
flags.DEFINE_float('poll_seconds', 30.0, 'Between two polls of a batch.')
flags.DEFINE_bool(
  'forget_batches',
  False,
  'Give up batches that the server no longer knows: their rows are asked again.',
)
flags.DEFINE_integer('batch_size', 20_000, 'Calls per batch.')

_PRICE_IN = flags.DEFINE_float('price_in', 0.0, 'Per million prompt tokens.')
_PRICE_OUT = flags.DEFINE_float('price_out', 0.0, 'The same, for completions.')
_BUDGET = flags.DEFINE_float(
  'budget', None, 'What the completions file may cost in all.'
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the costs and stop.')
_FORCE = flags.DEFINE_bool(
  'force', False, 'Continue a file that was written with other settings.'
)

# Named as the fields of `backends.ServerConfig`.
_SERVER_FLAGS = (
  *('backend', 'base_url', 'replay', 'timeout', 'concurrency', 'rpm', 'tpm'),
  *('poll_seconds', 'batch_size', 'forget_batches'),
)


def main() -> int:
  """Runs the command; returns its exit status."""
  for flag in (_BENCHMARK, _SOURCE, _OUT):
    if not flag.value:
      raise contract.UserError(
        f'--{flag.name} is missing. --help lists all flags.'
      )
  key = secret.from_environment(_KEY.value)
  key.guard_logs()
  prompt = _prompt()
  job = extraction.Extraction(
    path=pathlib.Path(_OUT.value),
    work=_worklist(prompt),
    sampling=_sampling(prompt),
    prompt_settings={
      'prompt': prompt.fingerprint,
      'exemplars': len(prompt.exemplars),
      'seed': _SEED.value,
    },
    server=_server(key),
    prices=costs.Prices(_PRICE_IN.value, _PRICE_OUT.value, _BUDGET.value),
    rationalize=_RATIONALIZE.value,
  )
  return job.show_costs() if _DRY_RUN.value else job.run()


def _prompt() -> prompt_lib.Prompt:
  default = prompt_lib.FOLDER / f'{_BENCHMARK.value}.json'
  prompt = prompt_lib.load(pathlib.Path(_PROMPT.value or default))
  count = _EXEMPLARS.value
  count = len(prompt.exemplars) if count is None else count
  return prompt_lib.select(prompt, count, _SEED.value)


def _sampling(prompt: prompt_lib.Prompt) -> calls.Sampling:
  if _SAMPLES.value > 1 and not _TEMPERATURE.value:
    raise contract.UserError(
      f'--samples is {_SAMPLES.value} at --temperature=0, where all samples'
      ' are equal. Give a temperature such as 0.7.'
    )
  plain = _ENDPOINT.value == calls.COMPLETIONS
  default = prompt.stop if plain else ()
  try:
    extra = json.loads(_EXTRA.value)
  except ValueError:
    extra = None
  if not isinstance(extra, dict):
    raise contract.UserError(
      f'--extra is {_EXTRA.value!r}, expected a JSON object such as'
      """ '{"top_p": 0.9}'."""
    )
  return calls.Sampling(
    model=_MODEL.value or '',
    endpoint=_ENDPOINT.value,
    temperature=_TEMPERATURE.value,
    max_tokens=_MAX_TOKENS.value,
    stop=tuple(default if _STOP.value is None else _STOP.value),
    extra=extra,
  )


def _worklist(prompt: prompt_lib.Prompt) -> worklist.Worklist:
  per_call = _PER_CALL.value
  return worklist.Worklist(
    register.benchmark(_BENCHMARK.value, module=_MODULE.value),
    _SOURCE.value,
    _SPLIT.value,
    prompt,
    _ENDPOINT.value,
    samples=_SAMPLES.value,
    samples_per_call=_SAMPLES.value if per_call is None else per_call,
    limit=_LIMIT.value,
    max_prompt_tokens=_MAX_PROMPT.value,
    force=_FORCE.value,
  )


def _server(key: secret.Secret) -> backends.ServerConfig:
  backoff = limiter.Backoff(attempts=_ATTEMPTS.value)
  values = {name: flags.FLAGS[name].value for name in _SERVER_FLAGS}
  return backends.ServerConfig(key=key, backoff=backoff, **values)


if __name__ == '__main__':
  command.run(main)
