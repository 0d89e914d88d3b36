# SPDX-License-Identifier: Apache-2.0
"""A pass that asks the LLM of its rationales: is this right?

Source: the self-evaluation of Liu et al. 2024, Mind's Mirror, arXiv:2311.09214;
the words are this project's.
"""

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from dsbs_jax import contract
from dsbs_jax.data import parsing
from dsbs_jax.data.source import answer_notes, archive
from dsbs_jax.data.source import rows as rows_lib
from rationales import calls, completions_file
from rationales import prompt as prompt_lib
from rationales import worklist as worklist_lib

FIELDS = ('input', 'rationale', 'label')
DEFAULT = """\
Here are a question, a line of reasoning about it, and the answer it ends in.

Question: {input}

Reasoning: {rationale}

Answer: {label}

Check the reasoning step by step. Is it right, and is its answer, too? Reply \
with one word, yes or no."""


def load(path: str | None) -> str:
  """The template in a text file; None takes ours.

  Args:
    path: a file with {input}, {rationale} and, if wanted, {label}.

  Raises:
    contract.UserError: there is no such file, or it does not show the input and
      the rationale.
  """
  if path is None:
    return DEFAULT
  file = pathlib.Path(path)
  archive.check_regular(file)
  if not file.is_file():
    raise contract.UserError(
      f'--verdict_prompt is {path}, expected a text file. Check the path.'
    )
  template = file.read_text(encoding='utf-8')
  fill(template, dict.fromkeys(FIELDS, ''))
  for field in FIELDS[:2]:
    if f'{{{field}}}' not in template:
      raise contract.UserError(
        f'{path} has no {{{field}}}, expected it where the LLM is to read the'
        f' {field}. Add it.'
      )
  return template


def fill(template: str, fields: dict[str, str]) -> str:
  """The prompt of one rationale.

  Args:
    template: as `load` returns it.
    fields: the text of each of `FIELDS`.

  Raises:
    contract.UserError: the template names another field.
  """
  try:
    return template.format_map(fields)
  except (LookupError, ValueError) as error:
    raise contract.UserError(
      f'The prompt for verdicts cannot be filled ({error}), expected {{}}'
      f' around names among {", ".join(FIELDS)}. Correct it.'
    ) from None


@dataclasses.dataclass(frozen=True)
class VerdictPass:
  """The calls that ask whether the completions of a file are right.

  Attributes:
    work: the rows, and how completions of them are read.
    template: of the prompt, as `load` returns it.
  """

  work: worklist_lib.Worklist
  template: str = DEFAULT

  def todo(
    self, index: completions_file.Index, path: pathlib.Path
  ) -> Iterator[calls.Call]:
    """Calls for the completions of the first pass that have no verdict.

    Completions that the benchmark cannot read are skipped. One whose text was
    replaced since it was judged is judged again.

    Args:
      index: the file's answers.
      path: the file.

    Raises:
      contract.UserError: a row is wrong, or its rationale was judged by
        another prompt.
    """
    with contextlib.ExitStack() as stack:
      # A file that does not exist yet has no completions.
      file = stack.enter_context(path.open('rb')) if len(index) else None
      for row in self.work.rows():
        for sample in range(self.work.samples):
          call = self._call(row, sample, index, file)
          if call is not None:
            yield call

  def preview(
    self, count: int, index: completions_file.Index, path: pathlib.Path
  ) -> str:
    """The first prompts as they would be sent, for people.

    Args:
      count: how many.
      index: the file's answers.
      path: the file.

    Raises:
      contract.UserError: there is nothing to judge.
    """
    found = list(itertools.islice(self.todo(index, path), count))
    if not found:
      raise contract.UserError(
        f'{path} has no completion without a verdict, expected some to judge.'
        ' Run the extraction without --verdicts first.'
      )
    return '\n'.join(
      worklist_lib.preview_call(call, call.example_id) for call in found
    )

  def _call(
    self,
    row: rows_lib.Row,
    sample: int,
    index: completions_file.Index,
    file: BinaryIO | None,
  ) -> calls.Call | None:
    """The call for a sample's verdict; None where there is nothing to ask."""
    judged, key = (
      completions_file.SampleKey(kind, row.example_id, sample)
      for kind in (completions_file.COMPLETION, completions_file.VERDICT)
    )
    line = index.read(judged, file) if judged in index else None
    said = line and self.work.benchmark.parse(line['text'])
    if not isinstance(said, parsing.Parsed):
      return None
    fields = {'input': row.input, 'rationale': said.rationale}
    content = text = fill(self.template, fields | {'label': said.label})
    if self.work.endpoint == calls.CHAT:
      content = [{'role': 'user', 'content': text}]
    call = calls.Call(
      kind=key.kind,
      example_id=row.example_id,
      samples=(sample,),
      content=content,
      prompt_hash=prompt_lib.text_hash(f'{self.work.endpoint}\0{text}'),
      prompt_bytes=len(text.encode('utf-8', 'surrogatepass')),
      gold='',
      fingerprint=row.fingerprint,
      replaces=index.offset(key),
      about=answer_notes.digest(line['text']),
    )
    before = index.read(key, file)
    if before is None or before.get('about') != call.about:
      return call
    if before['prompt_hash'] != call.prompt_hash and not self.work.force:
      raise contract.UserError(
        f'{row.place} (id {row.example_id}) was judged already, but by another'
        ' prompt. Restore it, or keep the old verdicts with --force.'
      )
    unread = parsing.verdict(before['text']) == parsing.UNREADABLE
    return call if self.work.is_retry(before, unread=unread) else None
