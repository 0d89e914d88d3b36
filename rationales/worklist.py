# SPDX-License-Identifier: Apache-2.0
"""Rows -> the calls that are still to be made, one after another.

The only thing held per row is its entry in `completions_file.Index`. The rows
file is read twice: for the estimate, which finds every error before the first
call is paid, and while the calls are made.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data.source import completions, joining, sources
from dsbs_jax.data.source import rows as rows_lib
from rationales import prompt as prompt_lib
from rationales.record import calls, completions_file, costs

CUT, EMPTY, UNPARSED, ALL = RETRIES = ('cut', 'empty', 'unparsed', 'all')


@dataclasses.dataclass(frozen=True)
class Worklist:
  """What is asked about which rows.

  Raises:
    contract.UserError: a number is out of range.
  """

  benchmark: benchmark_lib.Benchmark
  source: str
  split: str
  prompt: prompt_lib.Prompt  # with the exemplars that are shown
  endpoint: str  # calls.CHAT or calls.COMPLETIONS
  samples: int = 1  # completions wanted per row
  samples_per_call: int = 1  # how many of them one call asks for
  limit: int | None = None  # number of rows, from the first; None reads all
  max_prompt_tokens: int = 0  # of the longest, as estimated; 0 allows all
  force: bool = False  # whether answers to other prompts count as answers
  retry: str | None = None  # which answers count as none, one of RETRIES

  def __post_init__(self):
    if self.samples < 1 or self.samples_per_call < 1:
      raise contract.UserError(
        f'--samples is {self.samples} and --samples_per_call'
        f' {self.samples_per_call}, expected 1 or more of both.'
      )
    if self.limit is not None and self.limit < 1:
      raise contract.UserError(
        f'--limit is {self.limit}, expected 1 row or more.'
      )

  def preview(self, count: int, *, hinted: bool) -> str:
    """The prompts of the first rows as they would be sent, for people.

    Those of the second pass are `hinted`.

    Raises:
      contract.UserError: a row is wrong, or its prompt is too long.
    """
    return '\n'.join(
      preview_call(
        self.call(row, (0,), hint=row.gt_label if hinted else None),
        f'{row.example_id} ({row.place})',
        f', human label {row.gt_label!r}',
      )
      for row in itertools.islice(self.rows(), count)
    )

  def first_pass(self, index: completions_file.Index) -> Iterator[calls.Call]:
    """Calls for the samples without an answer, in the order of the rows.

    Raises:
      contract.UserError: a row is wrong, its prompt is too long, or the file
        has an answer to another prompt for it.
    """
    for row in self.rows():
      whole = self.call(row, range(self.samples))
      missing, replaces = [], -1
      for key in whole.sample_keys():
        answered = index.prompt_hash(key)
        if answered not in (None, whole.prompt_hash) and not self.force:
          raise contract.UserError(
            f'{row.place} (id {row.example_id}) was answered already, but to'
            ' another prompt: the row or the rows file has changed since.'
            ' Restore it, give another file with --out, or keep the old'
            ' answers with --force.'
          )
        if answered is None or self._is_retried(row, key, index):
          missing.append(key.sample)
          replaces = max(replaces, index.offset(key))
      for start in range(0, len(missing), self.samples_per_call):
        part = missing[start : start + self.samples_per_call]
        yield dataclasses.replace(whole, samples=tuple(part), replaces=replaces)

  def second_pass(self, index: completions_file.Index) -> Iterator[calls.Call]:
    """Calls with the human label as a hint, for rows that got another one.

    Rows without a completion, without a human label or with a hinted answer
    already are skipped.

    Source: rationalization, section 3.2 of arXiv 2203.14465.

    Raises:
      contract.UserError: a row is wrong, or the benchmark has no accuracy.
    """
    for row in self.rows():
      hinted = completions_file.SampleKey(
        completions_file.RATIONALIZATION, row.example_id, 0
      )
      if not row.gt_label or (
        hinted in index and not self._is_retried(row, hinted, index)
      ):
        continue
      if self._was_wrong(row, index):
        call = self.call(row, (0,), hint=row.gt_label)
        yield dataclasses.replace(call, replaces=index.offset(hinted))

  def answers_of_no_row(self, index: completions_file.Index) -> list[int]:
    """Offsets of answers that no row is about; none where rows are left out."""
    if self.limit is not None or not len(index):
      return []
    return index.of_no_row(row.example_id for row in self.rows())

  def _is_retried(
    self,
    row: rows_lib.Row,
    key: completions_file.SampleKey,
    index: completions_file.Index,
  ) -> bool:
    """Whether the sample's answer is of the kind that is asked for again."""
    if self.retry is None:
      return False
    line = index.read(key)
    example = joining.join(
      self.benchmark,
      row,
      [completions.Sample(line['text'])],
      parse=self.benchmark.parse,
    )
    return self.is_retry(line, unread=example.status != joining.PARSED)

  def is_retry(self, line: Mapping[str, Any], *, unread: bool) -> bool:
    """The same of a line, which perhaps nobody can read."""
    if self.retry is None:
      return False
    reason = line.get('finish_reason')
    faults = {
      CUT: reason == completions_file.LENGTH,
      EMPTY: not line['text'].strip()
      or reason == completions_file.CONTENT_FILTER,
      UNPARSED: unread,
    }
    return faults.get(self.retry, any(faults.values()))

  def _was_wrong(
    self, row: rows_lib.Row, index: completions_file.Index
  ) -> bool:
    result = self.llm_answer(row, index)
    if result is None:
      return False
    correct = joining.is_correct(self.benchmark, row.gt_label, result.label)
    if correct is None:
      raise contract.UserError(
        f'The metric of {self.benchmark.name!r} has no "accuracy", expected it'
        ' to tell which labels are wrong. Add it to the metric.'
      )
    return not correct

  def llm_answer(
    self, row: rows_lib.Row, index: completions_file.Index
  ) -> joining.Outcome | None:
    """What most samples of the first pass say; None without a sample."""
    kind = completions_file.COMPLETION
    found = [
      index.read(completions_file.SampleKey(kind, row.example_id, sample))
      for sample in range(index.num_samples)
    ]
    parsed = [self.benchmark.parse(line['text']) for line in found if line]
    return joining.majority_vote(self.benchmark, parsed)[0] if parsed else None

  def rows(self) -> Iterator[rows_lib.Row]:
    """The rows, up to the limit."""
    found = sources.read_rows(self.benchmark, self.source, self.split)
    return itertools.islice(found, self.limit)

  def call(
    self,
    row: rows_lib.Row,
    samples: Iterable[int],
    *,
    hint: str | None = None,
    kind: str = completions_file.RATIONALIZATION,
  ) -> calls.Call:
    """The call for some samples of a row.

    A `hint` is a label that the prompt is to contain; `kind` is that of the
    answer to such a prompt.

    Raises:
      contract.UserError: the row does not fill the prompt, or it is too long.
    """
    fields = {**row.fields, 'rendered': row.input}
    # Of all exemplars, so that files of before are continued.
    named = prompt_lib.completion_text(self.prompt, fields, hint=hint)
    shown = prompt_lib.without_answer(self.prompt, fields)
    content = text = prompt_lib.completion_text(shown, fields, hint=hint)
    if self.endpoint == calls.CHAT:
      content = prompt_lib.chat_messages(shown, fields, hint=hint)
    call = calls.Call(
      kind=completions_file.COMPLETION if hint is None else kind,
      example_id=row.example_id,
      samples=tuple(samples),
      content=content,
      prompt_hash=prompt_lib.text_hash(f'{self.endpoint}\0{named}'),
      prompt_bytes=len(text.encode('utf-8', 'surrogatepass')),
      gold=row.gt_label if hint is None else hint,
      hinted=hint is not None,
      fingerprint=row.fingerprint,
    )
    tokens = costs.prompt_tokens(call)
    if self.max_prompt_tokens and tokens > self.max_prompt_tokens:
      raise contract.UserError(
        f'{row.place} (id {row.example_id}) makes a prompt of about'
        f' {tokens:,.0f} tokens, expected at most {self.max_prompt_tokens:,}'
        ' (--max_prompt_tokens). Show fewer --exemplars, raise the limit or'
        ' drop the row.'
      )
    return call


def preview_call(call: calls.Call, title: str, more: str = '') -> str:
  """A prompt as it would be sent, for people, below a title."""
  tokens = costs.prompt_tokens(call)
  parts = [f'=== {title}: about {tokens:,.0f} tokens{more}']
  if isinstance(call.content, str):
    parts.append(call.content)
  else:
    for message in call.content:
      parts += [f'--- {message["role"]}', message['content']]
  return '\n'.join(parts)
