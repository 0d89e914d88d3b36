# SPDX-License-Identifier: Apache-2.0
"""Rows -> the calls that are still to be made, streamed.

Nothing is held per row but what `records.Index` holds: the rows file is read
once for the survey, which finds every error before the first call is paid,
and once more while the calls are made.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data.source import joining, rows, sources
from rationales import bill, calls, records
from rationales import prompt as prompt_lib


@dataclasses.dataclass(frozen=True)
class Worklist:
  """What is asked about which rows.

  Attributes:
    benchmark, source, split: where the rows are.
    prompt: the prompt with the exemplars that are shown.
    endpoint: calls.CHAT or calls.COMPLETIONS.
    samples: completions wanted per row.
    samples_per_call: how many of them one call asks for.
    limit: number of rows to read, from the first; None reads all.
    max_prompt_tokens: longest prompt allowed, by the estimate; 0 allows all.
    force: whether answers to other prompts count as answers.
  """

  benchmark: benchmark_lib.Benchmark
  source: str
  split: str
  prompt: prompt_lib.Prompt
  endpoint: str
  samples: int = 1
  samples_per_call: int = 1
  limit: int | None = None
  max_prompt_tokens: int = 0
  force: bool = False

  def __post_init__(self):
    if self.samples < 1 or self.samples_per_call < 1:
      raise ValueError(
        f'--samples is {self.samples} and --samples_per_call'
        f' {self.samples_per_call}, expected 1 or more of both.'
      )
    if self.limit is not None and self.limit < 1:
      raise ValueError(f'--limit is {self.limit}, expected 1 row or more.')

  def first_pass(self, index: records.Index) -> Iterator[calls.Call]:
    """Calls for the samples that the file has no answer to.

    Args:
      index: the file's answers.

    Yields:
      The calls, in the order of the rows.

    Raises:
      ValueError: a row is wrong, its prompt is too long, or the file answers
        another question for this row.
    """
    for row in self._rows():
      whole = self._call(row, range(self.samples))
      missing = []
      for slot in whole.slots():
        known = index.prompt_hash(slot)
        if known is None:
          missing.append(slot.sample)
        elif known != whole.prompt_hash and not self.force:
          raise ValueError(_changed(row))
      for start in range(0, len(missing), self.samples_per_call):
        part = missing[start : start + self.samples_per_call]
        yield dataclasses.replace(whole, samples=tuple(part))

  def second_pass(
    self, index: records.Index, path: pathlib.Path
  ) -> Iterator[calls.Call]:
    """Calls with the right label as a hint, for rows that got a wrong one.

    Rows without a completion, without a known label or with a hinted answer
    already are passed over.

    Source: rationalization, section 3.2 of arXiv 2203.14465.

    Args:
      index: the file's answers.
      path: the file.

    Yields:
      The calls, in the order of the rows.
    """
    with path.open('rb') as file:
      for row in self._rows():
        hinted = records.Slot(records.RATIONALIZATION, row.example_id, 0)
        if not row.gt_label or hinted in index:
          continue
        if self._was_wrong(row, index, file):
          yield self._call(row, (0,), hinted=True)

  def _was_wrong(
    self, row: rows.Row, index: records.Index, file: BinaryIO
  ) -> bool:
    slots = self._call(row, range(self.samples)).slots()
    found = [index.read(slot, file) for slot in slots]
    parsed = [self.benchmark.parse(line['text']) for line in found if line]
    if not parsed:
      return False
    result, _ = joining.majority(self.benchmark, parsed)
    right = joining.is_correct(self.benchmark, row.gt_label, result.label)
    if right is None:
      raise ValueError(
        f'The metric of {self.benchmark.name!r} gives no "accuracy", so no'
        ' label can be called wrong. Add it to the metric.'
      )
    return not right

  def _rows(self) -> Iterator[rows.Row]:
    found = sources.read_rows(self.benchmark, self.source, self.split)
    return itertools.islice(found, self.limit)

  def _call(self, row: rows.Row, samples, *, hinted=False) -> calls.Call:
    fields = {**row.fields, 'rendered': row.input}
    hint = row.gt_label if hinted else None
    text = prompt_lib.completion_text(self.prompt, fields, hint=hint)
    content = text
    if self.endpoint == calls.CHAT:
      content = prompt_lib.chat_messages(self.prompt, fields, hint=hint)
    call = calls.Call(
      kind=records.RATIONALIZATION if hinted else records.COMPLETION,
      example_id=row.example_id,
      samples=tuple(samples),
      content=content,
      prompt_hash=prompt_lib.text_hash(f'{self.endpoint}\0{text}'),
      prompt_bytes=len(text.encode('utf-8', 'surrogatepass')),
      gold=row.gt_label,
      hinted=hinted,
    )
    self._check_length(row, call)
    return call

  def _check_length(self, row: rows.Row, call: calls.Call) -> None:
    tokens = bill.prompt_tokens(call)
    if self.max_prompt_tokens and tokens > self.max_prompt_tokens:
      raise ValueError(
        f'{row.place} (id {row.example_id}) makes a prompt of about'
        f' {tokens:,.0f} tokens, expected at most {self.max_prompt_tokens:,}'
        ' (--max_prompt_tokens). Show fewer --exemplars, raise the limit or'
        ' drop the row.'
      )


@dataclasses.dataclass
class Survey:
  """What is to be done, counted before the first call.

  Attributes:
    calls: requests to make.
    samples: completions they ask for.
    tokens: estimate of what they use.
    utmost: what they cannot exceed.
    longest: estimated tokens of the longest prompt.
  """

  calls: int = 0
  samples: int = 0
  tokens: bill.Tokens = bill.Tokens()
  utmost: bill.Tokens = bill.Tokens()
  longest: float = 0.0


def survey(todo: Iterator[calls.Call], account: bill.Bill) -> Survey:
  """Counts the calls and what they will cost."""
  result = Survey()
  for call in todo:
    expected = account.expected(call)
    result.tokens += expected
    result.utmost += account.at_most(call)
    result.calls += 1
    result.samples += len(call.samples)
    result.longest = max(result.longest, expected.prompt)
  return result


def _changed(row: rows.Row) -> str:
  return (
    f'{row.place} (id {row.example_id}) was answered already, but to another'
    ' prompt: the row or the rows file has changed since. Restore it, give'
    ' another file with --out, or keep the old answers with --force.'
  )
