# SPDX-License-Identifier: Apache-2.0
"""Help pages: `dsbs --help`, and those of the commands."""

import importlib.metadata
import itertools
import platform
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence

from absl import flags

# Verb -> what it does, in the order of the work.
VERBS = {
  'extract': 'an LLM writes rationales and labels for your rows (stage 1)',
  'prepare': 'rows and completions become a data set, written once',
  'show': 'examples as training sees them',
  'train': 'trains a student on labels and rationales',
  'eval': 'scores a student on the prepared splits',
  'infer': 'answers every line of a file',
  'serve': "answers over HTTP, also in OpenAI's protocol",
  'export': 'a folder for Hugging Face, T5X, or JAX alone',
  'plan': 'memory, time and price of a run, before it starts',
  'sweep': 'many runs: methods, sizes, shares of the data, seeds',
  'report': 'tables, figures and one page of many runs',
}
FRONT = """\
usage: dsbs VERB [flags]

Distilling Step-by-Step: a small T5 learns labels and rationales from an LLM.

{verbs}

From rows to a served student:

  dsbs extract --benchmark=cqa --source=rows --model=my-llm \\
    --base_url=http://localhost:8000/v1 --out=completions/train.jsonl
  dsbs prepare --benchmark=cqa --source=rows --completions=completions \\
    --data_dir=data
  dsbs train --benchmark=cqa --student=flan-t5-base --data_dir=data \\
    --out=runs/cqa
  dsbs eval runs/cqa
  dsbs infer runs/cqa questions.jsonl --out=answers.jsonl
  dsbs serve runs/cqa
  dsbs export runs/cqa --format=hf --out=cqa-student

After train, a run's folder says what it is: network, vocabulary, data, task.
dsbs VERB --help lists flags and settings; dsbs --version tells the version.\
""".format(
  verbs='\n'.join(f'  {verb:8} {line}' for verb, line in VERBS.items())
)
_HELP_FLAGS = ('-h', '-help', '--help', '--helpshort')
_WIDTH, _COLUMN = 80, 28
_ADDED = re.compile(r'^<[^>]*>: |;\s+repeat this option.*$', re.DOTALL)
_KINDS = {'string': 'TEXT', 'int': 'NUMBER', 'float': 'NUMBER'}
# Flags of our own that every command has are defined here.
_SHARED = (
  'dsbs_jax.runtime.configuration.gin_flags',
  'dsbs_jax.runtime.command',
)


def is_asked_for(arguments: Sequence[str]) -> bool:
  """Whether a command line asks for the help page."""
  before = itertools.takewhile(lambda argument: argument != '--', arguments)
  return any(argument in _HELP_FLAGS for argument in before)


def versions(names: Iterable[str]) -> dict[str, str]:
  """The version of each package."""
  found = {}
  for name in names:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = 'not installed as a package'
  return found


def version() -> str:
  """One line: our version, and those that answers depend on."""
  ours, jax = versions(('dsbs_jax', 'jax')).values()
  python = platform.python_version()
  return f'dsbs_jax {ours} (jax {jax}, Python {python})'


def of_command(doc: str, more: str) -> str:
  """The help page of the command that runs: its docstring, flags, and more."""
  parts = [doc.strip(), 'Flags:', *_flags(), more]
  return '\n\n'.join(part.rstrip() for part in parts if part)


def entry(name: str, text: str) -> str:
  """The name of a flag or a macro, and beside or below it what it means."""
  wrapped = textwrap.fill(
    text,
    _WIDTH,
    initial_indent=' ' * _COLUMN,
    subsequent_indent=' ' * _COLUMN,
    break_on_hyphens=False,
  )
  head = f'  {name}'
  if len(head) + 2 > _COLUMN:
    return f'{head}\n{wrapped}'
  return head.ljust(_COLUMN) + wrapped[_COLUMN:]


def _flags() -> Iterable[str]:
  """The flags of the running command and of `_SHARED`, one block each."""
  for module in (sys.argv[0], *_SHARED):
    own = flags.FLAGS.flags_by_module_dict().get(module, [])
    if own:
      yield '\n'.join(map(_flag_entry, own))


def _flag_entry(flag: flags.Flag) -> str:
  name = f'--{flag.name}'
  # absl adds the values of an enum and a remark on repetition.
  text = _ADDED.sub('', flag.help or '')
  if flag.boolean:
    name = f'--[no]{flag.name}'
  elif isinstance(flag.parser, flags.EnumParser):
    name += f'={"|".join(flag.parser.enum_values)}'
  elif 'comma separated' in flag.flag_type():
    name += '=A,B'
  else:
    kind = flag.flag_type().rpartition(' ')[2]
    name += f'={_KINDS.get(kind, kind.upper())}'
  if flag.flag_type().startswith('multi '):
    text += ' May be repeated.'
  default = flag.default
  if default is True or (default not in (None, '', [], False)):
    text += f' [{flag.default_as_str}]'.replace("'", '')
  return entry(name, text)
