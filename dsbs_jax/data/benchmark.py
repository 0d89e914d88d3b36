# SPDX-License-Identifier: Apache-2.0
"""A benchmark: everything the project must be told to work with a data set.

One `Benchmark` is the whole extension interface. Its required fields are one
sentence each (which files, how a row reads, what its answer is, how to read a
completion, how to score); the rest has defaults that suit most data.
`find(name)` is how commands get from `--benchmark=cqa` to the object.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import parsing, task_modules

Row = Mapping[str, Any]
Parser = Callable[[str], 'parsing.Parsed | parsing.Unparsed']
Metric = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]

SPLITS = ('train', 'validation', 'test')

_NAME = re.compile('[a-z][a-z0-9_]*')
_REGISTRY: dict[str, 'Benchmark'] = {}


@dataclasses.dataclass(frozen=True)
class Part:
  """Some rows of one file.

  Attributes:
    file: file name, relative to the benchmark's folder or any folder above it.
    select: from the file's number of rows to the indices that belong here, in
      order; None takes all rows in file order.
  """

  file: str
  select: Callable[[int], Sequence[int]] | None = None


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A data set with its texts, parser and metric.

  Attributes:
    name: lower-case identifier, the first part of every task name.
    splits: rows file of each split, `train`, `validation` or `test`; its
      suffix says its kind, see `source/record_reader`. Several names are read
      one after another.
    render: row -> the input text. Premise and hypothesis are joined by the
      literal `</s>`, which becomes the EOS id.
    label: row -> the human label as text.
    parse: completion -> rationale and label; never raises (see `parsing`).
    metric: (targets, predictions) -> {'accuracy': percent, ...}, a seqio
      metric function.
    labels: the closed set of labels, or () where labels are free text.
    options: row -> its answer choices, or None where rows have no choices.
    well_formed: label -> whether the metric can read it; None accepts all.
    example_id: row -> an id that is unique in its split; None uses
      `<split>-<index>`.
    vote: label -> key under which two labels count as the same answer when
      several samples vote; None compares texts.
    parsers: completions of a teacher that needs a parser of its own.
    fallbacks: where a split's file is absent, the part of another file that
      holds its rows.
    derive_validation: whether validation is a tenth of train, as in the paper.
    derive_test: whether test is a tenth of train, drawn before all else.
    completion: what `parse` reads, with `{rationale}` and `{label}`; with it a
      student is served as a teacher. None where that is not said.
  """

  name: str
  splits: Mapping[str, str | Sequence[str]]
  render: Callable[[Row], str]
  label: Callable[[Row], str]
  parse: Parser
  metric: Metric
  _: dataclasses.KW_ONLY
  labels: Sequence[str] = ()
  options: Callable[[Row], Sequence[str]] | None = None
  well_formed: Callable[[str], bool] | None = None
  example_id: Callable[[Row], str] | None = None
  vote: Callable[[str], Hashable] | None = None
  parsers: Mapping[str, Parser] = dataclasses.field(default_factory=dict)
  fallbacks: Mapping[str, Part] = dataclasses.field(default_factory=dict)
  derive_validation: bool = False
  derive_test: bool = False
  completion: str | None = None

  def __post_init__(self):
    if not _NAME.fullmatch(self.name):
      raise contract.UserError(
        f'Benchmark.name is {self.name!r}, expected lower-case letters,'
        ' digits and underscores that start with a letter.'
      )
    unknown = [split for split in self.splits if split not in SPLITS]
    if unknown or not self.splits:
      raise contract.UserError(
        f'Benchmark {self.name!r} has splits {list(self.splits)}, expected'
        f' one or more of {", ".join(SPLITS)}. Rename or add a split.'
      )
    for split in self.derived & set(self.splits):
      raise contract.UserError(
        f'Benchmark {self.name!r} has a {split} file and derive_{split}=True.'
        ' Drop one of the two.'
      )

  @property
  def derived(self) -> set[str]:
    """The splits that are cut from train."""
    wanted = {'validation': self.derive_validation, 'test': self.derive_test}
    return {split for split, derived in wanted.items() if derived}

  def parser(self, teacher: str) -> Parser:
    """The parser for completions of this teacher."""
    return self.parsers.get(teacher, self.parse)

  def split_names(self) -> tuple[str, ...]:
    """Splits in their fixed order, derived ones included."""
    return tuple(s for s in SPLITS if s in self.splits or s in self.derived)

  def row_id(self, row: Row, *, split: str, index: int) -> str:
    """The id that joins a row with its completions.

    Args:
      split: the split whose file the row stands in, before any validation
        split is derived from it.
    """
    if self.example_id is None:
      return f'{split}-{index}'
    found = self.example_id(row)
    if not isinstance(found, str | int) or found == '':
      raise contract.UserError(
        f'the id is {found!r:.60}, expected text or a number'
      )
    return str(found)


@dataclasses.dataclass(frozen=True)
class Rationale:
  """One of several rationales of a row.

  Attributes:
    text: the rationale, with visible text.
    label: what the LLM wrote behind it.
    agrees: whether that is the row's `llm_label`, by the benchmark's `vote`.
    gt: whether it argues for the human label: a verdict of `conclusions`.
    llm: the same for the row's `llm_label`.
  """

  text: str
  label: str
  agrees: bool
  gt: str
  llm: str


@dataclasses.dataclass(frozen=True)
class Example:
  """One row joined with what the LLM said about it.

  Attributes:
    index: position in the rows file or, where a split has several files, in
      their concatenation. Subsampling and derived splits keep it.
    example_id: the row's id, unique in its split.
    input: the rendered text, without any prefix.
    gt_label: the human label.
    llm_label: the LLM's label, or the sentinel that the original code trains
      on where there is none (`' '` or `''`).
    rationale: the LLM's rationale, or the sentinel.
    status: 'parsed', or why the completion is not usable as it stands.
    correct: whether the metric counts llm_label as right; None where it gives
      no 'accuracy'.
    votes: completions that gave this label.
    samples: completions of this row.
    options: the row's answer choices, () where it has none.
    rationales: all of the row, in the order of their samples, where there are
      two or more; else (). One with the `llm_label` is the first of its kind
      in `rationale`. Prepared examples come without; see
      `prepared/rationale_file`.
    verdict: what the LLM said when it was asked whether the rationale is
      right: 'yes', 'no', or '' where it was not asked or did not say.
    counterfactual: a wrong label, neither gt_label nor llm_label, and the
      rationale that the LLM wrote for it when it was asked to; () where it was
      not asked or did not.
    label_probs: the LLM's probability of each of the benchmark's labels, see
      `soft_labels`; () where its server did not tell.
  """

  index: int
  example_id: str
  input: str
  gt_label: str
  llm_label: str
  rationale: str
  status: str
  correct: bool | None = None
  votes: int = 0
  samples: int = 0
  options: tuple[str, ...] = ()
  verdict: str = ''
  counterfactual: tuple[str, str] | tuple[()] = ()
  label_probs: tuple[float, ...] = ()
  rationales: tuple[Rationale, ...] = ()


def add(benchmark: Benchmark, *, replaces: Benchmark | None = None) -> None:
  """Makes a benchmark known by its name.

  Args:
    replaces: one that may have had the name until now.
  """
  known = _REGISTRY.get(benchmark.name, replaces)
  if known is replaces:
    known = _REGISTRY[benchmark.name] = benchmark
  if known is not benchmark:
    raise contract.UserError(
      f'A benchmark named {benchmark.name!r} exists already, expected one'
      ' per name. Rename yours, and import its module under one name only.'
    )


def names() -> tuple[str, ...]:
  """The names known so far, sorted."""
  return tuple(sorted(_REGISTRY))


def get(name: str) -> Benchmark | None:
  """The same as `find`, but None where nothing registers the name."""
  if name not in _REGISTRY and _NAME.fullmatch(name):
    task_modules.import_ours(name)
  return _REGISTRY.get(name)


def find(name: str, *, prepared: Iterable[str] = ()) -> Benchmark:
  """The benchmark of this name.

  A name that is not known yet is looked for in our tasks/<name>.py, then in all
  modules of that folder.

  Args:
    prepared: names of others, which lie in the data folder, for the error.

  Raises:
    UserError: nothing registers this name; the nearest ones are named.
  """
  if get(name) is None:
    known = sorted({*names(), *prepared})
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f' Did you mean {" or ".join(near)}?' if near else ''
    raise contract.UserError(
      f'No benchmark is named {name!r}, expected one of'
      f' {", ".join(known)}.{hint} A benchmark of your own is found'
      ' when its module is imported first, or in the data_dir where it was'
      ' prepared from --rows (see tasks/README.md).'
    )
  return _REGISTRY[name]
