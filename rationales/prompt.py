# SPDX-License-Identifier: Apache-2.0
"""Few-shot prompts: an instruction and exemplars from JSON, made into text.

docs/prompts.md describes the file.

Source: the triplets (input, rationale, label) of section 3.1 of
arXiv 2305.02301, and the layouts that the published completions show.
"""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import pathlib
import random
from collections.abc import Iterable, Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import columns
from dsbs_jax.data.source import archive, completions

FOLDER = pathlib.Path(__file__).resolve().parent / 'prompts'

_PARTS = {
  **dict.fromkeys(('instruction', 'question', 'cue', 'answer'), str),
  **{'provenance': str, 'exemplars': list, 'hint': str, 'stop': list},
  **dict.fromkeys(('benchmark', 'license'), str),
}
_OPTIONAL = dict.fromkeys(('benchmark', 'provenance', 'license', 'hint'), '')
_EXEMPLAR_PARTS = ('group', 'input', 'rationale', 'answer', 'label')

Row = Mapping[str, Any]  # its fields, with `rendered`
Opening = tuple[str, tuple[dict[str, str], ...]]  # as text, as messages


@dataclasses.dataclass(frozen=True)
class Exemplar:
  """One worked example: a row, its rationale and its answer."""

  group: str  # the class by which a selection of exemplars is balanced
  input: Row | str  # the fields of the benchmark's rows, or the rendered text
  rationale: str  # in the words that the LLM should imitate
  answer: str  # the label as the completion spells it, such as `(b) spring`
  label: str  # that the benchmark's parser finds in the answer


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt file's contents; see the module's docstring."""

  instruction: str
  question: str
  hint: str
  cue: str
  answer: str
  stop: tuple[str, ...]
  exemplars: tuple[Exemplar, ...]

  @functools.cached_property
  def fingerprint(self) -> str:
    """A hash of everything that decides what a row's prompt looks like."""
    return text_hash(json.dumps(dataclasses.asdict(self), sort_keys=True))

  def exemplar_answer(self, exemplar: Exemplar) -> str:
    """The completion that the LLM should give to one of the exemplars."""
    return fill(self.answer, dataclasses.asdict(exemplar))

  @functools.cached_property
  def _openings(self) -> dict[bool, Opening]:
    """What comes before the row, without and with hints."""
    return {hinted: _opening(self, hinted) for hinted in (False, True)}

  @functools.cached_property
  def _questions(self) -> tuple[str, ...]:
    """What each exemplar asks, without a hint."""
    return tuple(_question(self, e.input, None) for e in self.exemplars)


def text_hash(text: str) -> str:
  """The first 16 hexadecimal digits of the text's SHA-256."""
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(path: pathlib.Path, *, benchmark: str | None = None) -> Prompt:
  """Reads a prompt file, with all its exemplars in the file's order.

  Raises:
    contract.UserError: the file is missing, is not JSON, lacks a part, has an
      unknown one, or names another benchmark.
  """
  archive.check_regular(path)
  try:
    data = json.loads(path.read_text(encoding='utf-8-sig'))
  except FileNotFoundError:
    raise contract.UserError(
      f'There is no prompt file {path}. Make one from your rows with'
      ' --write_prompt=FILE (docs/prompts.md), or name yours with'
      ' --prompt=FILE.'
    ) from None
  except ValueError as error:
    raise contract.UserError(
      f'{path} is not JSON ({error}), expected a prompt file. Correct it, or'
      ' give another with --prompt.'
    ) from None
  data = _OPTIONAL | {'stop': []} | (data if isinstance(data, dict) else {})
  _check_names(data, _PARTS, path)
  for name, kind in _PARTS.items():
    if not isinstance(data.get(name), kind):
      raise contract.UserError(
        f'{path} has {data.get(name)!r:.60} as "{name}", expected a JSON object'
        f' in which it is a {kind.__name__}. Correct the file, or give another'
        ' with --prompt.'
      )
  if benchmark and data['benchmark'] not in ('', benchmark):
    raise contract.UserError(
      f'{path} is a prompt for the benchmark {data["benchmark"]!r}, expected'
      f' one for {benchmark!r}. Give that one with --prompt, or correct'
      ' "benchmark" in the file.'
    )
  for text in data['stop']:
    if not isinstance(text, str) or not text:
      raise contract.UserError(
        f'{path} has {text!r:.60} in "stop", expected texts at which an answer'
        ' ends. Correct the file, or give another with --prompt.'
      )
  data['stop'] = tuple(data['stop'])
  data['exemplars'] = tuple(
    _exemplar(record, f'{path}, exemplar {number}')
    for number, record in enumerate(data['exemplars'], 1)
  )
  return Prompt(**{f.name: data[f.name] for f in dataclasses.fields(Prompt)})


def select(prompt: Prompt, count: int | None, seed: int) -> Prompt:
  """Keeps `count` exemplars, balanced over their groups.

  The groups take turns, in an order and with members that the seed decides:
  their numbers differ by one at most until a group has no more. None keeps all.

  Raises:
    contract.UserError: the prompt has fewer.
  """
  every = prompt.exemplars
  count = len(every) if count is None else count
  if not 0 <= count <= len(every):
    raise contract.UserError(
      f'--exemplars is {count}, expected 0 to {len(every)}, the'
      ' number in the prompt file. Add exemplars to it or ask for fewer.'
    )
  groups: dict[str, list[Exemplar]] = {}
  for exemplar in random.Random(seed).sample(every, len(every)):
    groups.setdefault(exemplar.group, []).append(exemplar)
  turns = itertools.zip_longest(*groups.values())
  kept = [e for turn in turns for e in turn if e is not None][:count]
  return dataclasses.replace(prompt, exemplars=tuple(kept))


def without_answer(prompt: Prompt, row: Row) -> Prompt:
  """The prompt without exemplars that are the row itself.

  `--write_prompt` takes exemplars from the rows. Shown its own worked example,
  the LLM would copy the answer, and count as right. It is the very same prompt
  where no exemplar asks what the row asks.

  Raises:
    contract.UserError: the template names a field that the row lacks.
  """
  asked = _question(prompt, row, None)
  if asked not in prompt._questions:
    return prompt
  pairs = zip(prompt.exemplars, prompt._questions, strict=True)
  others = tuple(one for one, question in pairs if question != asked)
  return dataclasses.replace(prompt, exemplars=others)


def completion_text(
  prompt: Prompt, row: Row, *, hint: str | None = None
) -> str:
  """What a plain completion model continues: all up to and with the cue.

  `hint` is a label for the prompt to contain.

  Raises:
    contract.UserError: the template names a field that the row lacks.
  """
  opening = prompt._openings[hint is not None][0]
  return opening + _question(prompt, row, hint) + prompt.cue


def chat_messages(
  prompt: Prompt, row: Row, *, hint: str | None = None
) -> list[dict[str, str]]:
  """The same as `completion_text`, as turns of a conversation.

  Each exemplar is a user's question and the assistant's answer. The cue is
  left out: the roles of the turns say the same.
  """
  question = {'role': 'user', 'content': _question(prompt, row, hint)}
  return [*prompt._openings[hint is not None][1], question]


def _opening(prompt: Prompt, hinted: bool) -> Opening:
  blocks = [prompt.instruction] if prompt.instruction else []
  turns = [{'role': 'system', 'content': text} for text in blocks]
  for exemplar in prompt.exemplars:
    hint = exemplar.label if hinted else None
    question = _question(prompt, exemplar.input, hint)
    answer = prompt.exemplar_answer(exemplar)
    blocks.append(f'{question}{prompt.cue} {answer}')
    turns.append({'role': 'user', 'content': question})
    turns.append({'role': 'assistant', 'content': answer})
  return ''.join(f'{block}\n\n' for block in blocks), tuple(turns)


def _question(prompt: Prompt, row: Row | str, hint: str | None) -> str:
  fields = {'rendered': row} if isinstance(row, str) else row
  # A missing value (None, NaN) is nothing, as in an input.
  fields = {k: '' if v is None or v != v else v for k, v in fields.items()}
  asked = completions.encodable(fill(prompt.question, fields))
  return asked if hint is None else asked + fill(prompt.hint, {'label': hint})


def fill(template: str, fields: Row, *, place: str = 'the prompt file') -> str:
  """A template with fields for the names in braces.

  Raises:
    contract.UserError: it names another field; `place` is where to correct it.
  """
  try:
    return template.format_map(fields)
  except (LookupError, ValueError, TypeError, AttributeError) as error:
    raise contract.UserError(
      f'The template {template!r:.80} cannot be filled ({error}), expected {{}}'
      f' around names among {", ".join(sorted(fields))}. Correct it in {place}.'
    ) from None


def _check_names(
  record: Mapping[str, Any], known: Iterable[str], place: object
) -> None:
  """Refuses a part that no prompt has, which is a slip of the pen."""
  for name in record:
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
      hint = f' Did you mean "{near[0]}"?' if near else ''
      raise contract.UserError(
        f'{place} has a part {name!r:.60}, expected some of'
        f' {", ".join(known)}.{hint} Rename or remove it.'
      )


def _exemplar(record: Any, place: str) -> Exemplar:
  needed = {'input': (dict, str), 'rationale': str, 'label': (str, int, float)}
  for name, kind in needed.items():
    if not isinstance(record, dict) or not isinstance(record.get(name), kind):
      raise contract.UserError(
        f'{place} has no {name} of the right type, expected input, rationale'
        ' and label. Correct the prompt file.'
      )
  _check_names(record, _EXEMPLAR_PARTS, place)
  label = columns.text(record['label'], 'label')  # as rows read: true
  return Exemplar(
    group=str(record.get('group', label)),
    input=record['input'],
    rationale=record['rationale'],
    answer=str(record.get('answer', label)),
    label=label,
  )
