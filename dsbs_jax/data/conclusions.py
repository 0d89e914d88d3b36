# SPDX-License-Identifier: Apache-2.0
"""Which answer a rationale argues for, and whether that is the target.

The rule reads what is there and asks no model. A rationale argues for

  1. the one answer that its text concludes with. Where answers are known
     (labels, or the choices of a row): the last sentence that names any of
     them, in any case, singular or plural, names just this one. Where answers
     are numbers: the value of its last equation, what stands left of the last
     '=' or, where that is no arithmetic, the number right of it;
  2. otherwise the label that the LLM wrote behind it, if that is a possible
     answer;
  3. otherwise nothing that can be told.

Answers of one letter are not looked for in texts: 'A' would be the article.
It is plain, so it errs: 'it is not a contradiction' names a contradiction.
docs/data.md has counts on published outputs.
"""

import re
from collections.abc import Iterable, Sequence

from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import metrics, parsing

FOR = 'for'
AGAINST = 'against'
UNCLEAR = 'unclear'
ARGUES = (FOR, AGAINST, UNCLEAR)

_SENTENCE_END = re.compile(r'(?<=[.!?])\s+|\n')
_NUMBER = r'\(*\$?\d[\d,]*(?:\.\d+)?\)*'
_EQUATION = re.compile(
  rf'(?P<left>{_NUMBER}(?: ?[-+*/] ?{_NUMBER})*)? ?='
  r' ?(?P<right>-?\$?\d[\d,]*(?:\.\d+)?)'
)


def argues(
  benchmark: benchmark_lib.Benchmark,
  rationale: str,
  *,
  label: str,
  options: Sequence[str],
  target: str,
) -> str:
  """Whether a rationale argues for the target: FOR, AGAINST or UNCLEAR.

  Args:
    benchmark: says what answers there are, and its metric which are equal.
    label: what the LLM wrote behind it; blank where it wrote nothing.
    options: the row's choices; () where it has none.
    target: the label that the student is to learn beside it.
  """
  found = conclusion(benchmark, rationale, label=label, options=options)
  if not found:
    return UNCLEAR
  scores = benchmark.metric([target], [found])
  same = scores['accuracy'] == 100 if 'accuracy' in scores else found == target
  return FOR if same else AGAINST


def conclusion(
  benchmark: benchmark_lib.Benchmark,
  rationale: str,
  *,
  label: str,
  options: Sequence[str],
) -> str:
  """The answer that a rationale argues for, '' where that cannot be told."""
  answers = tuple(benchmark.labels) or tuple(options)
  end = rationale[-parsing.MAX_SEARCHED_CHARS :]
  if answers:
    return _named(end, answers) or (label if label in answers else '')
  if benchmark.well_formed is None:
    return label.strip()
  said = _value(end) if benchmark.well_formed('1 + 1') else ''
  return said or (label if benchmark.well_formed(label) else '')


def _named(text: str, answers: tuple[str, ...]) -> str:
  """The only answer in the last sentence that names any; else ''."""
  known = {}
  for answer in sorted(filter(_is_named, answers), key=len, reverse=True):
    known.setdefault(answer.strip().casefold(), answer)
  for sentence in reversed(_SENTENCE_END.split(text.casefold())):
    found = _names_in(sentence, known)
    if found:
      return known[found[0]] if len(found) == 1 else ''
  return ''


def _is_named(answer: str) -> bool:
  """Whether a sentence would name an answer; one letter is an article, too."""
  plain = answer.strip()
  return len(plain) > 1 or (plain != '' and not plain.isalpha())


def _names_in(sentence: str, names: Iterable[str]) -> list[str]:
  """The names that a sentence has as whole words, longest first, none twice.

  A name inside of a longer one that was found, as 'problem' in 'math problem',
  does not count.
  """
  found, left = [], sentence
  for name in names:
    start = left.find(name)
    while start >= 0:
      end = start + len(name)
      if not left[:start][-1:].isalnum() and _ends_word(left, end):
        if name not in found:
          found.append(name)
        left = f'{left[:start]}{" " * len(name)}{left[end:]}'
      start = left.find(name, end)
  return found


def _ends_word(text: str, end: int) -> bool:
  """Whether a word ends here, or after the ending of a plural."""
  return any(
    text.startswith(plural, end) and not text[end + len(plural) :][:1].isalnum()
    for plural in ('', 's', 'es')
  )


def _value(text: str) -> str:
  """The last equation's left side, or the number it says; '' without one."""
  equations = list(_EQUATION.finditer(text))
  if not equations:
    return ''
  found = equations[-1]
  left = (found['left'] or '').replace(',', '').replace('$', '')
  if any(sign in left for sign in '+-*/') and metrics.has_value(left):
    return left
  return found['right'].replace(',', '').replace('$', '')
