# SPDX-License-Identifier: Apache-2.0
"""Reads the table of mutants: mistakes to be made in the code, one at a time."""

import ast
import dataclasses
import pathlib
import tomllib
from collections.abc import Sequence

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TABLE = pathlib.Path(__file__).with_name('table.toml')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
  """One mistake.

  Attributes:
    room: the part of the project in which it is made.
    file: the file, below the repository.
    mistake: what was confused, in a sentence.
    old: text that occurs once in the file.
    new: what stands in its place.
    tests: files of tests that are expected to see it.
  """

  room: str
  file: str
  mistake: str
  old: str
  new: str
  tests: Sequence[str]

  def problem(self, root: pathlib.Path) -> str | None:
    """Why it cannot be made in a tree, in words, or None."""
    missing = [x for x in (self.file, *self.tests) if not (root / x).is_file()]
    if missing:
      return f'{self.file}: {missing[0]} does not exist'
    count = (root / self.file).read_text(encoding='utf-8').count(self.old)
    if count != 1:
      return f'{self.file} has {self.old!r} {count} times, expected once'
    if self.old == self.new or not self.tests:
      return f'{self.file}: nothing changes, or no test is named'
    try:
      ast.parse(self.mutated(root))
    except SyntaxError as error:
      return f'{self.file} cannot be parsed with {self.new!r} ({error})'
    return None

  def mutated(self, root: pathlib.Path) -> str:
    """The file with the mistake in it."""
    text = (root / self.file).read_text(encoding='utf-8')
    return text.replace(self.old, self.new)


def load(path: pathlib.Path = TABLE) -> list[Mutant]:
  """All mutants of a table, in its order."""
  rooms = tomllib.loads(path.read_text(encoding='utf-8'))
  return [Mutant(room=room, **entry) for room in rooms for entry in rooms[room]]
