# SPDX-License-Identifier: Apache-2.0
"""Wrong labels of a row, and the rationale that an LLM wrote for one.

Wrong labels are the benchmark's `labels`, or the row's `options`, without the
human label and the LLM's. Which one is asked about is drawn by the row's
fingerprint, so that every run draws the same. Benchmarks with open labels, such
as SVAMP, have none that could be drawn: another row's answer is no answer to
this question. Lines of the user's own may have them.

Source: the counterfactual data of Wang et al. 2023, SCOTT, arXiv:2305.01879,
whose four data sets are multiple choice or yes and no, too.
"""

import hashlib
from collections.abc import Sequence

from dsbs_jax import contract
from dsbs_jax.data import parsing
from dsbs_jax.data.benchmark import Benchmark, Parser
from dsbs_jax.data.source import completions, joining, rows


def check(benchmark: Benchmark) -> None:
  """Raises UserError where no wrong labels are known."""
  if not benchmark.labels and benchmark.options is None:
    raise contract.UserError(
      f'--counterfactuals needs wrong labels to ask about, but the labels of'
      f' {benchmark.name!r} are open, expected a benchmark with `labels` or'
      ' `options`. Declare them, or leave the flag out.'
    )


def wrong_labels(
  benchmark: Benchmark, row: rows.Row, llm_label: str
) -> list[str]:
  """The row's possible answers that neither the human nor the LLM gave."""
  found = benchmark.labels or (
    benchmark.options(row.fields) if benchmark.options else ()
  )
  return [
    label
    for label in dict.fromkeys(found)
    if _is_wrong(benchmark, row, label, llm_label=llm_label)
  ]


def _is_wrong(
  benchmark: Benchmark, row: rows.Row, label: str, *, llm_label: str
) -> bool:
  """Whether a label is possible, and neither the human one nor the LLM's."""
  return rows.label_problem(benchmark, row.fields, label) is None and not any(
    is_same(benchmark, label, given) for given in (row.gt_label, llm_label)
  )


def is_same(benchmark: Benchmark, label: str, other: str) -> bool:
  """Whether two labels are one answer, as texts or by the metric."""
  return label == other or bool(joining.is_correct(benchmark, label, other))


def draw(labels: Sequence[str], row: rows.Row) -> str:
  """The wrong label that is asked about.

  Args:
    labels: `wrong_labels`, at least one.
    row: decides, by its fingerprint.
  """
  digest = hashlib.sha256(row.fingerprint.encode()).digest()
  return labels[int.from_bytes(digest[:8]) % len(labels)]


def argued(
  benchmark: Benchmark,
  outcome: parsing.Parsed | parsing.Unparsed,
  wrong_label: str,
) -> bool:
  """Whether a completion argues for the label that it was asked to."""
  return isinstance(outcome, parsing.Parsed) and is_same(
    benchmark, wrong_label, outcome.label
  )


def of_example(
  benchmark: Benchmark,
  row: rows.Row,
  samples: Sequence[completions.Sample],
  *,
  parse: Parser,
  llm_label: str,
) -> tuple[str, str] | tuple[()]:
  """The wrong label and its rationale that an example has; () for none.

  None where the LLM wrote for another label than it was asked to, or where that
  one is no wrong label: the human label, or what the LLM says by now.
  """
  for sample in samples:
    label = sample.wrong_label
    if label and _is_wrong(benchmark, row, label, llm_label=llm_label):
      outcome = parse(sample.text)
      if argued(benchmark, outcome, label):
        return label, outcome.rationale
  return ()
