# SPDX-License-Identifier: Apache-2.0
"""The report command: reads runs, compares them, writes tables and a page."""

import itertools
import pathlib
from collections.abc import Sequence

from dsbs_jax import contract
from dsbs_jax.data.remote import buckets
from dsbs_jax.reporting import (
  comparison,
  example_browser,
  findings,
  method_pairs,
  page,
  references,
  tables,
)
from dsbs_jax.runs import results, run_folder
from dsbs_jax.runtime import files, terminal_text


def report(
  paths: Sequence[str],
  *,
  out: str | None = None,
  examples: int = example_browser.MAX_EXAMPLES,
) -> pathlib.Path:
  """Writes tables and the page, prints the table; returns the page's path.

  Args:
    paths: folders with runs at any depth.
    out: folder to write to; None is `report` in the first of `paths`.
    examples: number of examples in the page at most.

  Raises:
    UserError: there are no runs, or one cannot be read.
  """
  if not paths:
    raise contract.UserError(
      'no folder is given, expected one with runs: python -m dsbs_jax.report'
      ' RUNS_DIR.'
    )
  if examples < 0:
    raise contract.UserError(f'--examples is {examples}, expected 0 or more.')
  copies = [buckets.fetch(path, arrays=False) for path in paths]
  by_folder = {}  # one may be given twice, or with one that holds it
  for run in itertools.chain.from_iterable(map(results.read_all, copies)):
    by_folder.setdefault(run.path.resolve(), run)
  runs = results.told_apart(list(by_folder.values()))
  rows = comparison.rows(runs)
  found = references.find(copies, runs)
  compared = {
    name: method_pairs.of_benchmark(name, members, found)
    for name, members in example_browser.shown_rows(rows).items()
  }
  browsers = example_browser.browsers(rows, compared=compared, limit=examples)
  finished = {run.path.resolve() for run in runs if run.finished}
  failures = {
    file.parent.resolve(): file.parent.name
    for path in copies
    for file in run_folder.find(path, run_folder.FAILURE_FILE)
  }
  # One that was trained by hand since is finished.
  failed = [name for path, name in failures.items() if path not in finished]
  warnings = [f'\n{text}\n' for text in findings.other_tests(compared)]
  texts = {
    'table.md': tables.markdown(rows, found) + ''.join(warnings),
    'table.csv': tables.settings_csv(rows, found),
    'runs.csv': tables.runs_csv(runs),
    'report.html': page.build(
      runs, rows, browsers, found=found, compared=compared, failed=failed
    ),
  }
  with buckets.output(out or copies[0] / 'report') as target:
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
      # What UTF-8 cannot encode becomes '?'.
      content = text.encode('utf-8', errors='replace')
      files.replace_bytes(target / name, content)
  print(terminal_text.visible(texts['table.md']))
  written = ', '.join(str(target / name) for name in texts)
  print(f'tables and page: {buckets.shown(written)}')
  return target / 'report.html'
