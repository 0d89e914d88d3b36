# SPDX-License-Identifier: Apache-2.0
"""What rows say only together: inputs in two splits, labels in two spellings.

Neither is an error, nor is a label that an LLM's answer could not give; each
makes an accuracy mean something else.
"""

import collections
import decimal
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator

from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data.source import joining

# A number as people write it: 20, -3.50, 1,000. Not 1,5, which is no 15.
_NUMBER = re.compile(r'[+-]?((\d{1,3}(,\d{3})+|\d+)\.?\d*|\.\d+)')
_MOST_SHOWN = 3


class RowChecks:
  """Watches examples on their way to the disk.

  Args:
    described: a benchmark without Python, whose labels an LLM's answers must
      be able to say, and if it has no options are what the rows have; None
      for others, whose labels are not looked at.
  """

  def __init__(self, described: benchmark_lib.Benchmark | None):
    self._described = described
    # Labels that are read as another one, with that one.
    self._misread: collections.Counter[tuple[str, str]] = collections.Counter()
    # Hashes: of a large benchmark the texts would not fit.
    self._inputs: dict[str, list[int]] = {}
    self._labels: collections.Counter[str] = collections.Counter()

  def watch(
    self, split: str, examples: Iterable[benchmark_lib.Example]
  ) -> Iterator[benchmark_lib.Example]:
    """Passes the examples of a split on."""
    inputs = self._inputs[split] = []
    for example in examples:
      inputs.append(hash(example.input))
      if self._described is not None:
        self._read_back(self._described, example.gt_label)
        if not self._described.options:
          self._labels[example.gt_label] += 1
      yield example

  def findings(self) -> Iterator[str]:
    """A line for everything that was found."""
    train = set(self._inputs.get('train', ()))
    for split, inputs in self._inputs.items():
      shared = sum(text in train for text in inputs)
      if split != 'train' and shared:
        yield (
          f'{shared:,} of {len(inputs):,} inputs of {split} are inputs of train'
          ' too: accuracy on them is no accuracy on new inputs'
        )
    for labels in self._alike(_plain):
      yield (
        'labels that differ by case, blanks or the form of a character alone'
        ' are different labels:'
        f' {self._counted(labels)}. Make them one in the rows, or give --labels'
      )
    numbers = self._alike(_number)
    if numbers:
      shown = '; '.join(map(self._counted, numbers[:_MOST_SHOWN]))
      more = len(numbers) - _MOST_SHOWN
      yield (
        'labels that are one number in two spellings are different texts to'
        f' learn: {shown}{f"; and {more:,} more numbers" if more > 0 else ""}.'
        ' Make them one in the rows'
      )

    if self._misread:
      ((label, found), _), *_ = self._misread.most_common(1)
      yield (
        f"{self._misread.total():,} labels would not be read back from an LLM's"
        f' answer as --answer says it ends: {label!r} reads {found!r}, so that'
        " right answers count as wrong. Give another, such as '#### {label}'"
      )

  def _read_back(self, described: benchmark_lib.Benchmark, label: str) -> None:
    """Notes a label that the answer with it does not give."""
    said = described.completion.replace('{rationale}', 'So.')
    # Behind a label with a full stop nobody writes another.
    end = said.partition('{label}')[2].strip()
    said = said.replace('{label}', label.removesuffix(end))
    found = described.parse(said).label
    if not joining.is_correct(described, label, found):
      self._misread[label, found] += 1

  def _alike(self, key: Callable[[str], Hashable]) -> list[list[str]]:
    """Labels with the same key, by two or more; None is no key."""
    groups: dict[Hashable, list[str]] = collections.defaultdict(list)
    for label in self._labels:
      if (found := key(label)) is not None:
        groups[found].append(label)
    return [labels for labels in groups.values() if len(labels) > 1]

  def _counted(self, labels: Iterable[str]) -> str:
    return ', '.join(f'{x!r} {self._labels[x]:,} times' for x in labels)


def _plain(label: str) -> str:
  plain = unicodedata.normalize('NFKC', label).casefold()
  return ' '.join(plain.split())


def _number(label: str) -> decimal.Decimal | None:
  """The value of a label that is a plain number."""
  found = _NUMBER.fullmatch(label.strip())
  return decimal.Decimal(found[0].replace(',', '')) if found else None
