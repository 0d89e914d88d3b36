# SPDX-License-Identifier: Apache-2.0
"""python -m rationales.extract --benchmark=cqa --source=... --out=... --model=...

Stage 1 of the method: an LLM with a few-shot prompt writes a rationale and a
label for every row of a split. README.md in this folder explains the steps.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import declared, register
from dsbs_jax.data.source import sources
from dsbs_jax.runtime import command, terminal_text
from rationales import (
  counterfactuals,
  extraction,
  further_passes,
  prompt_checks,
  prompt_template,
  verdicts,
  worklist,
)
from rationales import prompt as prompt_lib
from rationales.client import secret, server_config
from rationales.record import bucket_file, calls, costs

S, N, B = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_bool
F, E = flags.DEFINE_float, flags.DEFINE_enum

S('benchmark', None, 'Name of the benchmark.')
S('module', None, 'Module that registers your benchmark.')
S('source', None, "Folder or zip with the rows; default: `prepare --rows`'.")
S('split', 'train', 'train, validation or test.')
S('out', None, 'Completions file (.jsonl).')
N('limit', None, 'Only the first so many rows.')
S('data_dir', None, 'Folder of a benchmark that `prepare` has described.')

N('preview', 0, 'Print so many prompts and stop; needs no server.')
S('write_prompt', None, 'Write a prompt file of three labelled rows and stop.')

E('backend', 'http', server_config.BACKENDS, 'Who answers, and how.')
S('base_url', 'https://api.openai.com/v1', 'The server, up to /v1.')
S('key_variable', 'OPENAI_API_KEY', 'Environment variable with the API key.')
S('replay', None, 'Completions file to answer from.')
E('endpoint', calls.CHAT, calls.ENDPOINTS, 'Chat, or plain completions.')
S('model', None, "The server's name of the model.")
F('temperature', 0.0, '0 is greedy.')
N('samples', 1, 'Completions per row.')
N(
  'samples_per_call',
  None,
  'Completions per request; all by default, so that a prompt is paid once.'
  ' Some servers take 1 only.',
)
flags.DEFINE_multi_string(
  'stop',
  None,
  "Text that ends a completion; may be repeated. Default: the prompt's own"
  ' for plain completions, none for chat.',
)
N('max_tokens', 256, 'Longest completion; 0 leaves it to the server.')
S('extra', '{}', 'JSON object with further fields of a request.')
N(
  'logprobs',
  0,
  "Keep so many alternatives of each of the answer's tokens, for soft labels;"
  ' servers give 20 at most, some none.',
)

S('prompt', None, 'Prompt file; prompts/BENCHMARK.json by default.')
N('exemplars', None, 'How many; default all.')
N('seed', 0, 'Selects exemplars and their order.')
N('max_prompt_tokens', 0, 'A longer prompt is an error; 0 allows all.')
B(
  'rationalize',
  False,
  'Second pass: ask again, with the human label as a hint, about rows whose'
  ' label was wrong.',
)
B(
  'verdicts',
  False,
  'Further pass: ask the LLM of each of its completions whether it is right,'
  ' for the verdict task.',
)
S('verdict_prompt', None, 'Text file with {input}, {rationale} and {label}.')
B(
  'counterfactuals',
  False,
  'Further pass: ask the LLM for a rationale that argues for a wrong label, for'
  ' each row whose completion can be read.',
)
S(
  'counterfactual_prompt',
  None,
  'Text file that asks for it, with {input} and {label}, the wrong one; by'
  ' default the prompt, with the wrong label as its hint.',
)
E(
  'retry',
  None,
  worklist.RETRIES,
  'Ask again about answers that were cut at --max_tokens, are empty (refused),'
  ' or that the benchmark cannot read; the new answer counts.',
)

N('concurrency', 64, 'Calls at once, at most.')
F('rpm', 0, 'Requests per minute; 0 sets no limit.')
F('tpm', 0, 'Tokens per minute; 0 sets no limit.')
F('timeout', 120.0, 'Seconds for one call.')
N('attempts', 8, 'Attempts per call.')
F('outage_timeout', 3600.0, 'Seconds to wait while the server is down.')
B(
  'stop_early',
  True,
  'Stop if none of the first 20 answers has a label that can be read, or 20'
  ' calls in a row fail.',
)
F('poll_seconds', 30.0, 'Between two polls of a batch.')
B(
  'forget_batches',
  False,
  'Give up batches that the server no longer knows: their rows are asked again.',
)
N('batch_size', 20_000, 'Calls per batch.')

F('price_in', 0.0, 'Per million prompt tokens.')
F('price_out', 0.0, 'The same, for completions.')
F('budget', None, 'What the completions file may cost in all.')
B('dry_run', False, 'Print the costs and stop.')
B('force', False, 'Continue a file that was written with other settings.')

_PASSES = ('rationalize', 'verdicts', 'counterfactuals')


def main() -> int:
  """Runs the command; returns its exit status."""
  given = flags.FLAGS
  passes = [name for name in _PASSES if given[name].value]
  further = bool(set(passes) - {'rationalize'})
  _check_flags(passes, further=further)
  benchmark = register.benchmark(
    given.benchmark, **_values('module', 'data_dir')
  )
  if given.write_prompt:
    rows = sources.read_rows(benchmark, _source(), given.split)
    path = pathlib.Path(given.write_prompt)
    print(prompt_template.write(path, benchmark, rows))
    return 0
  prompt = _prompt(benchmark)
  if given.preview and not further:
    work = _worklist(benchmark, prompt)
    text = work.preview(given.preview, hinted=given.rationalize)
    print(terminal_text.visible(text))
    return 0
  key = secret.from_environment(given.key_variable)
  key.guard_logs()
  work = _worklist(benchmark, prompt)
  with bucket_file.local(given.out) as path:
    job = extraction.Extraction(
      path=path,
      work=work,
      sampling=_sampling(prompt),
      prompt_settings={
        'prompt': prompt.fingerprint,
        'exemplars': len(prompt.exemplars),
        'seed': given.seed,
      },
      server=_server(key),
      prices=costs.Prices(given.price_in, given.price_out, given.budget),
      further=_further_pass(work),
      **_values('rationalize', 'stop_early'),
    )
    if given.preview:
      return job.preview_further(given.preview)
    return job.show_costs() if given.dry_run else job.run()


def _check_flags(passes: Sequence[str], *, further: bool) -> None:
  given = flags.FLAGS
  needed = ['benchmark']
  if further or not (given.preview or given.write_prompt):
    needed.append('out')
  for name in needed:
    if not given[name].value:
      raise contract.UserError(f'--{name} is missing. --help lists all flags.')
  if given.preview < 0:
    raise contract.UserError(
      f'--preview is {given.preview}, expected 1 row or more.'
    )
  if len(passes) > 1:
    raise contract.UserError(
      f'{" and ".join(f"--{name}" for name in passes)} are'
      f' {("two", "three")[len(passes) - 2]} passes, expected one of them. Run'
      ' the command once with each.'
    )


def _values(*names: str) -> dict[str, Any]:
  """The flags with these names, as keyword arguments."""
  return {name: flags.FLAGS[name].value for name in names}


def _server(key: secret.Secret) -> server_config.ServerConfig:
  return server_config.ServerConfig(
    key=key,
    backoff=server_config.Backoff(attempts=flags.FLAGS.attempts),
    **_values('backend', 'base_url', 'replay', 'timeout', 'concurrency'),
    **_values('rpm', 'tpm', 'poll_seconds', 'batch_size', 'forget_batches'),
    **_values('outage_timeout', 'key_variable'),
  )


def _sampling(prompt: prompt_lib.Prompt) -> calls.Sampling:
  given = flags.FLAGS
  if given.samples > 1 and not given.temperature:
    raise contract.UserError(
      f'--samples is {given.samples} at --temperature=0, where all samples'
      ' are equal. Give a temperature such as 0.7.'
    )
  try:
    extra = json.loads(given.extra)
  except ValueError:
    extra = None
  if not isinstance(extra, dict):
    raise contract.UserError(
      f'--extra is {given.extra!r}, expected a JSON object such as'
      """ '{"top_p": 0.9}'."""
    )
  default = prompt.stop if given.endpoint == calls.COMPLETIONS else ()
  return calls.Sampling(
    stop=tuple(default if given.stop is None else given.stop),
    extra=extra,
    **_values('model', 'endpoint', 'temperature', 'max_tokens', 'logprobs'),
  )


def _further_pass(work: worklist.Worklist) -> further_passes.FurtherPass | None:
  given = flags.FLAGS
  for name, module, made in (
    ('verdict', verdicts, verdicts.VerdictPass),
    ('counterfactual', counterfactuals, counterfactuals.CounterfactualPass),
  ):
    if given[f'{name}s'].value:
      path = given[f'{name}_prompt'].value
      return made(work, *([module.TEMPLATE.load(path)] if path else []))
  return None


def _source() -> str:
  """Where the rows are, as the user or else the description says."""
  given = flags.FLAGS
  if found := given.source or declared.source(given.benchmark):
    return found
  raise contract.UserError(
    '--source is missing, expected the folder or zip with the rows of'
    f' {given.benchmark}. --help lists all flags.'
  )


def _prompt(benchmark: benchmark_lib.Benchmark) -> prompt_lib.Prompt:
  """The prompt, checked, with the exemplars that are shown."""
  given = flags.FLAGS
  default = prompt_lib.FOLDER / f'{benchmark.name}.json'
  path = pathlib.Path(given.prompt or default)
  prompt = prompt_lib.load(path, benchmark=benchmark.name)
  prompt_checks.check(prompt, benchmark, path)
  return prompt_lib.select(prompt, given.exemplars, given.seed)


def _worklist(
  benchmark: benchmark_lib.Benchmark, prompt: prompt_lib.Prompt
) -> worklist.Worklist:
  given = flags.FLAGS
  per_call = given.samples_per_call
  return worklist.Worklist(
    benchmark,
    prompt=prompt,
    samples_per_call=given.samples if per_call is None else per_call,
    source=_source(),
    **_values('split', 'endpoint', 'samples', 'limit'),
    **_values('max_prompt_tokens', 'force', 'retry'),
  )


if __name__ == '__main__':
  command.run(main)
