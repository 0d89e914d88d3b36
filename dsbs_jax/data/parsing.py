# SPDX-License-Identifier: Apache-2.0
"""Completion -> rationale and label, or the reason why not.

A parser is any function `text -> Parsed | Unparsed` that never raises. Bad
text is a value that is counted, and it still carries what the paper's
original code would have trained on, so that its runs can be repeated.
`after_marker` makes the parser that most prompts need; the benchmarks of the
paper have their own in `tasks/`.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

from dsbs_jax import contract

# Reasons that a parser gives. Others are set where the row is known.
NO_MARKER = 'no_marker'
TWO_MARKERS = 'two_markers'
NO_LABEL = 'no_label'
BLANK_LABEL = 'blank_label'
BLANK_RATIONALE = 'blank_rationale'

# What an LLM says when it is asked whether a rationale is right.
YES, NO, UNREADABLE = 'yes', 'no', 'unreadable'
_VERDICT = re.compile(r'\b(yes|no)\b', re.IGNORECASE)

# A pattern may take time quadratic in what it searches, and completions are
# as long as a model runs on.
MAX_SEARCHED_CHARS = 4_000


@dataclasses.dataclass(frozen=True)
class Parsed:
  """A completion with a rationale and a label, both with visible text."""

  rationale: str
  label: str


@dataclasses.dataclass(frozen=True)
class Unparsed:
  """A completion that lacks a part.

  Attributes:
    reason: short snake_case name, the key under which it is counted.
    rationale: what is trained on where nothing is filtered, often a sentinel.
    label: the same for the label.
  """

  reason: str
  rationale: str = ''
  label: str = ''


def verdict(text: str) -> str:
  """The verdict in an LLM's answer: its first yes or no, else UNREADABLE."""
  found = _VERDICT.search(text[:MAX_SEARCHED_CHARS])
  return found[1].lower() if found else UNREADABLE


def outcome(rationale: str, label: str) -> Parsed | Unparsed:
  """`Parsed` where both texts are visible, else `Unparsed` with the two.

  A missing label is named before a missing rationale.
  """
  if not label.strip():
    return Unparsed(BLANK_LABEL, rationale, label)
  if not rationale.strip():
    return Unparsed(BLANK_RATIONALE, rationale, label)
  return Parsed(rationale, label)


def halves(text: str, marker: str, *, sentinel: str) -> list[str] | Unparsed:
  """The texts before and after a marker that must occur exactly once.

  Args:
    marker: literal text, case-sensitive.
    sentinel: rationale and label of the `Unparsed` otherwise.

  Returns:
    [before, after], or `Unparsed` with `no_marker` or `two_markers`.
  """
  pieces = text.split(marker)
  if len(pieces) == 2:
    return pieces
  reason = NO_MARKER if len(pieces) == 1 else TWO_MARKERS
  return Unparsed(reason, sentinel, sentinel)


def after_marker(
  marker: str, *, label: str, until: Sequence[str] = ()
) -> Callable[[str], Parsed | Unparsed]:
  """Makes a parser for `rationale MARKER label`.

  Args:
    marker: literal text that ends the rationale and must occur once.
    label: regular expression, searched in the MAX_SEARCHED_CHARS after the
      marker; its first group, or the whole match without one, is the label.
    until: texts that begin the next example where a model runs on, such as
      'Q:'; the completion is cut at the first of them.

  Returns:
    The parser. Both texts are stripped; missing ones are ''.
  """
  pattern = re.compile(label)
  stop = re.compile('|'.join(map(re.escape, until)) or r'(?!)')

  def parse(text: str) -> Parsed | Unparsed:
    parts = halves(stop.split(text, maxsplit=1)[0], marker, sentinel='')
    if isinstance(parts, Unparsed):
      return parts
    rationale = parts[0].strip()
    match = pattern.search(parts[1][:MAX_SEARCHED_CHARS])
    if match is None:
      return Unparsed(NO_LABEL, rationale)
    found = match[1] if pattern.groups else match[0]
    return outcome(rationale, (found or '').strip())

  return parse


def after_answer(
  answer: str, *, labels: Sequence[str] = ()
) -> Callable[[str], Parsed | Unparsed]:
  """Makes a parser for completions that end as a template says.

  What stands before `{label}` in the template is the marker: it must occur
  once, in any case. Stars around the label, as in **yes**, are dropped.

  Args:
    answer: such as 'The answer is {label}.'.
    labels: the closed set; the label is the one that follows the marker, in
      any case, whatever comes behind it. Where none does, and where there is
      no set, it ends at what follows `{label}` in the template, if a blank or
      the line's end follows that in turn, or else at the line's end; the
      letter of a choice, as in '(b) fridge', is dropped.

  Returns:
    The parser. Both texts are stripped; missing ones are ''.

  Raises:
    UserError: the template has not one `{label}`, or nothing before it.
  """
  before, *after = answer.split('{label}')
  if len(after) != 1 or not before.strip():
    raise contract.UserError(
      f'--answer is {answer!r}, expected {{label}} in it once, with text before'
      " it, such as 'The answer is {label}.'."
    )
  marker = re.compile(re.escape(before.strip()), re.IGNORECASE)
  longest_first = sorted(labels, key=len, reverse=True)
  each = '|'.join(f'({re.escape(label)})' for label in longest_first)
  # What may stand before a label, and what behind it would make it another.
  letter = r'(?:\(\w\)\s+(?=\w))?'
  closed = re.compile(
    rf'[\s*_:"\'`(]*?{letter}(?:{each})(?!\w|[.,:/]\d)',
    re.IGNORECASE,
  )
  end = re.escape(after[0].strip())
  stop = rf'{end}\**(?=\s|$)|\n|$' if end else r'\n|$'
  free = re.compile(rf'[\s*]*{letter}([^\n]*?)[ \t*]*(?:{stop})')

  def parse(text: str) -> Parsed | Unparsed:
    parts = marker.split(text)
    if len(parts) != 2:
      return Unparsed(NO_MARKER if len(parts) == 1 else TWO_MARKERS)
    rationale, said = parts[0].strip(), parts[1][:MAX_SEARCHED_CHARS]
    match = closed.match(said) if labels else None
    if match is not None:
      found = match[match.lastindex]
      label = longest_first[match.lastindex - 1]
      return outcome(rationale, found if found in labels else label)
    return outcome(rationale, free.match(said)[1].strip())

  return parse
