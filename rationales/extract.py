# SPDX-License-Identifier: Apache-2.0
"""python -m rationales.extract --benchmark=cqa --source=... --out=... --model=...

Stage 1 of the method: few-shot prompts make an LLM write a rationale and a
label for every row of a split. README.md in this folder walks through it.
"""

import json
import pathlib

from absl import flags

from dsbs_jax.data import register
from dsbs_jax.runtime import command
from rationales import bill, calls, extraction, pacing, secret, worklist
from rationales import prompt as prompt_lib

_BENCHMARK = flags.DEFINE_string('benchmark', None, 'Name of the benchmark.')
_MODULE = flags.DEFINE_string(
  'module', None, 'Module that registers a benchmark of your own.'
)
_SOURCE = flags.DEFINE_string('source', None, 'Folder or zip with the rows.')
_SPLIT = flags.DEFINE_string('split', 'train', 'train, validation or test.')
_OUT = flags.DEFINE_string('out', None, 'Completions file (.jsonl).')
_LIMIT = flags.DEFINE_integer('limit', None, 'Read only so many rows.')

_BACKEND = flags.DEFINE_enum(
  'backend', 'http', extraction.BACKENDS, 'Who answers, and how.'
)
_BASE_URL = flags.DEFINE_string(
  'base_url', 'https://api.openai.com/v1', 'The server, up to /v1.'
)
_KEY = flags.DEFINE_string(
  'key_variable', 'OPENAI_API_KEY', 'Environment variable with the API key.'
)
_REPLAY = flags.DEFINE_string('replay', None, 'Completions file to replay.')
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
_SEED = flags.DEFINE_integer('seed', 0, 'Decides which exemplars, and order.')
_MAX_PROMPT = flags.DEFINE_integer(
  'max_prompt_tokens', 0, 'A longer prompt is an error; 0 allows all.'
)
_RATIONALIZE = flags.DEFINE_bool(
  'rationalize',
  False,
  'Second pass: ask again, with the right label as a hint, about rows whose'
  ' label was wrong.',
)

_CONCURRENCY = flags.DEFINE_integer('concurrency', 64, 'Most calls at once.')
_RPM = flags.DEFINE_float('rpm', 0, 'Requests per minute; 0 sets no limit.')
_TPM = flags.DEFINE_float('tpm', 0, 'Tokens per minute; 0 sets no limit.')
_TIMEOUT = flags.DEFINE_float('timeout', 120.0, 'Seconds for one call.')
_ATTEMPTS = flags.DEFINE_integer('attempts', 8, 'Attempts per call.')
_POLL = flags.DEFINE_float('poll_seconds', 30.0, 'Between looks at a batch.')
_FORGET = flags.DEFINE_bool(
  'forget_batches',
  False,
  'Give up batches that the server no longer knows: their rows are asked again.',
)
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 20_000, 'Calls per batch.')

_PRICE_IN = flags.DEFINE_float('price_in', 0.0, 'Per million prompt tokens.')
_PRICE_OUT = flags.DEFINE_float('price_out', 0.0, 'The same of completions.')
_BUDGET = flags.DEFINE_float(
  'budget', None, 'What the completions file may cost in all.'
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the bill and stop.')
_FORCE = flags.DEFINE_bool(
  'force', False, 'Continue a file that was written with other settings.'
)


def main() -> int:
  """Runs the command; returns its exit status."""
  for flag in (_BENCHMARK, _SOURCE, _OUT):
    if not flag.value:
      raise ValueError(f'--{flag.name} is missing. --help lists all flags.')
  key = secret.from_environment(_KEY.value)
  key.guard_logs()
  prompt = _prompt()
  work = extraction.Extraction(
    path=pathlib.Path(_OUT.value),
    todo=_worklist(prompt),
    sampling=_sampling(prompt),
    about={
      'prompt': prompt.fingerprint,
      'exemplars': len(prompt.exemplars),
      'seed': _SEED.value,
    },
    server=_server(key),
    prices=bill.Prices(_PRICE_IN.value, _PRICE_OUT.value, _BUDGET.value),
    rationalize=_RATIONALIZE.value,
  )
  return work.show_bill() if _DRY_RUN.value else work.run()


def _prompt() -> prompt_lib.Prompt:
  default = prompt_lib.FOLDER / f'{_BENCHMARK.value}.json'
  prompt = prompt_lib.load(pathlib.Path(_PROMPT.value or default))
  count = _EXEMPLARS.value
  count = len(prompt.exemplars) if count is None else count
  return prompt_lib.pick(prompt, count, _SEED.value)


def _sampling(prompt: prompt_lib.Prompt) -> calls.Sampling:
  if _SAMPLES.value > 1 and not _TEMPERATURE.value:
    raise ValueError(
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
    raise ValueError(
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


def _server(key: secret.Secret) -> extraction.Server:
  return extraction.Server(
    backend=_BACKEND.value,
    base_url=_BASE_URL.value,
    key=key,
    timeout=_TIMEOUT.value,
    concurrency=_CONCURRENCY.value,
    rpm=_RPM.value,
    tpm=_TPM.value,
    backoff=pacing.Backoff(attempts=_ATTEMPTS.value),
    poll_seconds=_POLL.value,
    batch_size=_BATCH_SIZE.value,
    replay=_REPLAY.value,
    forget_batches=_FORGET.value,
  )


if __name__ == '__main__':
  command.run(main)
