# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: bytes in, an exception where a promise is broken.

The same targets are tried by Hypothesis in the suite (test_targets.py) and by
atheris for minutes (campaign.py).
"""

import dataclasses
import functools
import io
import math
import pathlib
import re
import tempfile
from collections.abc import Callable

from dsbs_jax import contract
from dsbs_jax.data import metrics, parsing, register
from dsbs_jax.data.source import (
  completions,
  completions_by_position,
  json_reader,
  rows,
)
from dsbs_jax.inference import input_lines
from dsbs_jax.runtime import command
from dsbs_jax.runtime.configuration import gin_config
from rationales.record import costs
from rationales.record import ledger as ledger_lib
from tests import arithmetic
from tests.fuzz import gin_settings

with register.without_seqio():  # TensorFlow has no part in this
  from tasks import anli1, asdiv, cqa, esnli, parcels, svamp

BENCHMARKS = tuple(
  benchmark
  for module in (anli1, asdiv, cqa, esnli, parcels, svamp)
  for benchmark in (module.BENCHMARK, getattr(module, 'AUGMENTED', None))
  if benchmark is not None
)
_PARSERS = (
  *(parser for b in BENCHMARKS for parser in (b.parse, *b.parsers.values())),
  parsing.after_marker('The answer is', label=r'(\S+)\.', until=('Q:',)),
)

ENGINE = """\
from __gin__ import dynamic_registration
from tests.fuzz import gin_settings

FOLDER = '/a'
WIDTH = 4
gin_settings.Settings:
  model = @gin_settings.Model()
  folder = %FOLDER
gin_settings.Model.width = %WIDTH
"""
# A gin file may import any module and read any file: it is a program.
_PROGRAM = re.compile('import|include|__|@gin')


@dataclasses.dataclass(frozen=True)
class Target:
  """Something that must take any bytes.

  Attributes:
    run: takes the bytes; raises where a promise is broken.
    pieces: texts that inputs are made of, by Hypothesis and by atheris.
  """

  run: Callable[[bytes], None]
  pieces: tuple[str, ...]


def _text(data: bytes) -> str:
  """Any text, lone surrogates and NUL among it."""
  return data.decode('utf-8', 'surrogateescape')


def equations(data: bytes) -> None:
  """`value` gives NaN, or what Python gives."""
  text = _text(data)
  number = metrics.value(text)
  assert isinstance(number, float) and not math.isinf(number), number
  if not math.isnan(number):
    # It knows digits, + - * / and parentheses only, or it is a bug.
    assert not set(text.strip()) - set('0123456789eE.+-*/() \t\n'), text
    assert '**' not in text and '//' not in text, text
    assert number == arithmetic.python_value(text), text


def parsers(data: bytes) -> None:
  """Every parser gives texts; what is parsed is visible and can be scored."""
  text = _text(data)
  for parse in _PARSERS:
    outcome = parse(text)
    assert isinstance(outcome, parsing.Parsed | parsing.Unparsed), outcome
    assert isinstance(outcome.rationale, str), outcome
    assert isinstance(outcome.label, str), outcome
    if isinstance(outcome, parsing.Parsed):
      assert outcome.rationale.strip() and outcome.label.strip(), outcome
    else:
      assert re.fullmatch('[a-z_]+', outcome.reason), outcome
  outcome = svamp.parse(text)
  _, *rest = text.split('Q:')[0].rstrip().split('The answer is')
  if len(rest) == 1 and len(text) < 2000:
    match = re.search(r'\(.*\)', rest[0])
    assert outcome.label == (match[0] if match else ' '), outcome
  assert isinstance(metrics.has_value(outcome.label), bool)


def jsonl(data: bytes) -> None:
  """The readers give values or one UserError that names the file."""
  found = _allowed(lambda: list(json_reader.read(io.BytesIO(data), 'file')))
  counted = _allowed(lambda: json_reader.count(io.BytesIO(data), 'file'))
  if found is not None:
    assert counted == len(found), (counted, len(found))
    for record in found:
      assert record.place.startswith('file'), record
  _allowed(lambda: _by_id(data))
  _allowed(lambda: _by_position(data))
  for benchmark in (None, cqa.BENCHMARK, svamp.BENCHMARK):
    lines = list(
      input_lines.read_lines(io.BytesIO(data), 'f', benchmark=benchmark)
    )
    assert b''.join(line.content for line in lines) == data


def ledger(data: bytes) -> None:
  """What earlier runs left is read, or one UserError names the line."""
  _scratch().write_bytes(data)
  tracker = costs.CostTracker(costs.Prices(), max_tokens=9, answer_bytes=9.0)
  contents = _allowed(lambda: ledger_lib.read(_scratch(), tracker))
  assert contents is None or contents.jobs.next_number() is not None


def gin_front(data: bytes) -> None:
  """Gin text and flags give settings, or one UserError."""
  text = _text(data)
  arguments = ['prog', *(f'--gin.{line}' for line in text.split('\n'))]
  bindings = _allowed(
    lambda: command.rewrite_gin_flags(arguments), name='--gin'
  )
  if _PROGRAM.search(text):
    return
  engine = _scratch('.gin')
  engine.write_text(ENGINE)
  model = _scratch('.model.gin')
  model.write_bytes(data)
  for files, given in (
    ([str(engine), str(model)], []),
    ([str(engine)], [text]),
    (
      [str(engine)],
      [b.removeprefix('--gin_bindings=') for b in (bindings or ('',))[1:]],
    ),
  ):
    built = _allowed(
      lambda files=files, given=given: gin_config.build(
        gin_settings.Settings, gin_files=files, gin_bindings=given
      ),
      name='',
    )
    assert built is None or isinstance(built, gin_settings.Settings), built


def _by_id(data: bytes) -> None:
  found = completions.ById('file', lambda: io.BytesIO(data))
  for line in data.split(b'\n'):
    try:
      value = json_reader.decode(line, 'file')
    except contract.UserError:
      continue
    if isinstance(value, dict) and isinstance(value.get('id'), str):
      row = rows.Row(0, value['id'], {}, '', '', 'row', '')
      for sample in found.take(row) or ():
        sample.text.encode()  # no lone surrogate is left
  found.finish(1)


def _by_position(data: bytes) -> None:
  found = completions_by_position.ByPosition(
    [('file', lambda: io.BytesIO(data))]
  )
  for number in range(3):
    found.take(rows.Row(number, '', {}, '', '', 'row', ''))
  found.finish(3)


def _allowed(call: Callable, *, name: str = 'file'):
  """The call's value; None where it raises a UserError that says enough."""
  try:
    return call()
  except contract.UserError as error:
    message = str(error)
    assert len(message) > 10 and name in message, message
    assert len(message) < 2000, message
    return None


@functools.cache
def _scratch(suffix: str = '.file') -> pathlib.Path:
  """A file of this process, in memory where the machine has such a folder."""
  fast = pathlib.Path('/dev/shm')
  folder = tempfile.TemporaryDirectory(dir=fast if fast.is_dir() else None)
  _FOLDERS.append(folder)
  return pathlib.Path(folder.name) / f'input{suffix}'


_FOLDERS = []

TARGETS = {
  'equations': Target(
    equations,
    (
      *'0123456789eE.+-*/() \n',
      '( 84.0 / 2.0 )',
      '9**9**9',
      '1e308',
      '(' * 20,
      ')' * 20,
      '-' * 20,
      '9' * 100,
      '\x00',
      '\ud800',
      "__import__('os')",
      '٣',
      '1_0',
      '0x1',
      '1j',
      'nan',
    ),
  ),
  'parsers': Target(
    parsers,
    (
      'So the answer is',
      'The answer is',
      'Answer:',
      'Answer: ',
      'Premise:',
      'Q:',
      ' (a) ',
      '(1 + 2)',
      '.',
      '\n',
      ' ',
      'fridge',
      '(' * 50,
      ')' * 50,
      'a' * 50,
      '\x00',
      '\ud800',
      '\u2028',
    ),
  ),
  'jsonl': Target(
    jsonl,
    (
      '{"id": "r0", "text": "So. The answer is 5."}\n',
      '{"id": "r0", "kind": "failure"}\n',
      '{"kind": "header", "settings": {"split": "train"}}\n',
      '{"input": "2 + 2?"}\n',
      '["a", "b", "c"]',
      '"id"',
      '"text"',
      '"kind"',
      '"sample"',
      '"\\ud800"',
      '1e999',
      'NaN',
      '9' * 5000,
      '[' * 100,
      '\ufeff',
      '\ud8ff',
      '\n',
      *'{}[]:, ',
    ),
  ),
  'ledger': Target(
    ledger,
    (
      '{"kind": "completion", "id": "r0", "sample": 0, "text": "t",'
      ' "prompt_hash": "00ff"}\n',
      '{"kind": "header", "format": 1, "settings": {}}\n',
      '{"kind": "batch", "number": 1, "event": "created", "file_id": "f",'
      ' "batch_id": "b", "uploaded_at": 1.5}\n',
      '"usage": {"prompt_tokens": 1, "completion_tokens": 2}',
      '{"kind": "failure", "id": "r0"}\n',
      '"rationalization"',
      '"sample"',
      '"prompt_hash"',
      'null',
      '-1',
      '1e9',
      '9' * 100,
      '\n',
      *'{}[]:, ',
    ),
  ),
  'gin': Target(
    gin_front,
    (
      'WIDTH = 8\n',
      "FOLDER = '/a'\n",
      'gin_settings.Model.depth = 5\n',
      'gin_settings.Model:\n  depth = 3\n',
      'WIDHT = 3',
      '@gin_settings.Model()',
      '%WIDTH',
      '%',
      '@',
      '=',
      '/',
      '.',
      '\\\n',
      '#',
      "'''",
      '"',
      '[' * 20,
      '(1, 2)',
      '{1: 2}',
      '\x00',
      '\ud8ff',
      '\n',
      '  ',
    ),
  ),
}
