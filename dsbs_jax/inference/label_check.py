# SPDX-License-Identifier: Apache-2.0
"""Labels that a vocabulary cannot tell apart, which make an accuracy too good.

Answers are compared as the vocabulary writes them. T5's, for one, has no
Chinese characters and no braces: it writes each as the unknown id and reads
nothing back, so that every such label is the empty text.
"""

import collections
import unicodedata
from collections.abc import Mapping

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import task_forms
from dsbs_jax.data.prepared import tokens
from dsbs_jax.runtime import progress

_MOST_SHOWN = 5


def check(
  benchmark: benchmark_lib.Benchmark, splits: Mapping[str, tokens.Tokens]
) -> None:
  """Checks that different labels stay different.

  Raises:
    UserError: labels of the closed set do not. Of free labels, it is said.
  """
  for split, data in splits.items():
    if benchmark.labels:
      written = {
        label: task_forms.round_trip(label, vocabulary=data.vocabulary)
        for label in benchmark.labels
      }
    else:
      written = {data.label_text(i): data.answer(i) for i in range(len(data))}
    lost = same_when_written(written)
    if not lost:
      continue
    text, alike = next(iter(lost.items()))
    shown = ', '.join(map(repr, sorted(alike)[:_MOST_SHOWN]))
    said = (
      f'{sum(map(len, lost.values())):,} labels of {benchmark.name} cannot be'
      ' told from others, or from no answer, as the vocabulary lacks characters'
      f' of them: {shown} would all be {text!r}'
    )
    if benchmark.labels:
      raise contract.UserError(
        f'{said}. Take a vocabulary that can write them (bytes, mT5, or'
        ' prepare --train_vocab), or prepare other labels.'
      )
    progress.say(f'{data.name} {split}: {said}, and count as right for each')


def same_when_written(written: Mapping[str, str]) -> dict[str, set[str]]:
  """What several labels, or one and no answer, are written as -> these labels.

  Blanks and forms of a character (NFKC) make no other label.

  Args:
    written: label -> the same as a vocabulary writes it.
  """
  found = collections.defaultdict(set, {'': {''}})
  for label, text in written.items():
    plain = ' '.join(unicodedata.normalize('NFKC', label).split())
    found[text].add(plain)
  return {text: found[text] - {''} for text in found if len(found[text]) > 1}
