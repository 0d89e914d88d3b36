# SPDX-License-Identifier: Apache-2.0
"""What rows say only together: inputs in two splits, labels in two spellings.

Neither is an error, and each makes an accuracy mean something else.
"""

import collections
from collections.abc import Iterable, Iterator

from dsbs_jax.data import benchmark as benchmark_lib


class RowChecks:
  """Watches examples on their way to the disk.

  Args:
    check_labels: whether labels are a small set that the rows alone tell.
  """

  def __init__(self, *, check_labels: bool):
    self._check_labels = check_labels
    # Hashes: of a large benchmark the texts would not fit.
    self._inputs: dict[str, list[int]] = {}
    self._labels: collections.Counter[str] = collections.Counter()

  def watch(
    self, split: str, examples: Iterable[benchmark_lib.Example]
  ) -> Iterator[benchmark_lib.Example]:
    """Passes the examples of a split on.

    Args:
      split: its name.
      examples: of it, in any order.
    """
    inputs = self._inputs[split] = []
    for example in examples:
      inputs.append(hash(example.input))
      if self._check_labels:
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
    spellings: dict[str, list[str]] = collections.defaultdict(list)
    for label in self._labels:
      spellings[' '.join(label.casefold().split())].append(label)
    for labels in spellings.values():
      if len(labels) > 1:
        counts = ', '.join(f'{x!r} {self._labels[x]:,} times' for x in labels)
        yield (
          f'labels that differ by case or blanks alone are different labels:'
          f' {counts}. Make them one in the rows, or give --labels'
        )
