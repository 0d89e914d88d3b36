# SPDX-License-Identifier: Apache-2.0
"""What further passes share: they ask about rows that have completions."""

import abc
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from dsbs_jax import contract
from dsbs_jax.data.source import archive, json_reader
from dsbs_jax.data.source import rows as rows_lib
from rationales import prompt as prompt_lib
from rationales import worklist as worklist_lib
from rationales.record import calls, completions_file


@dataclasses.dataclass(frozen=True)
class Template:
  """A prompt in a text file of the user's, with names in braces."""

  flag: str  # that names the file
  _: dataclasses.KW_ONLY
  fields: Sequence[str]  # names that it may have
  needed: Sequence[str]  # those that it must have

  def load(self, path: str) -> str:
    """The text in the file.

    Raises:
      contract.UserError: there is no such file, or it lacks a field.
    """
    file = pathlib.Path(path)
    archive.check_regular(file)
    if not file.is_file():
      raise contract.UserError(
        f'--{self.flag} is {path}, expected a text file. Check the path.'
      )
    text = json_reader.decode_text(file.read_bytes(), path)
    template = text.removeprefix('\ufeff').replace('\r\n', '\n')
    self.fill(template, dict.fromkeys(self.fields, ''))
    for field in self.needed:
      if f'{{{field}}}' not in template:
        raise contract.UserError(
          f'{path} has no {{{field}}}, expected it where the LLM is to read the'
          f' {field}. Add it.'
        )
    return template

  def fill(self, template: str, fields: Mapping[str, str]) -> str:
    """The prompt of one row, by a template as `load` returns it.

    Raises:
      contract.UserError: the template names another field.
    """
    return prompt_lib.fill(template, fields, place=f'the file of --{self.flag}')


@dataclasses.dataclass(frozen=True)
class FurtherPass(abc.ABC):
  """The calls of a pass over rows that have completions."""

  work: worklist_lib.Worklist

  nothing: ClassVar[str]  # what there is none of where there is no call
  without: ClassVar[str]  # the flag of the pass
  done: ClassVar[str]  # what was done to a row, in the error of another prompt
  answers: ClassVar[str]  # the answers, in the same

  @abc.abstractmethod
  def of_row(
    self, row: rows_lib.Row, index: completions_file.Index
  ) -> Iterator[calls.Call]:
    """The calls for a row that are still to be made.

    Raises:
      contract.UserError: it was answered to another prompt.
    """

  def todo(self, index: completions_file.Index) -> Iterator[calls.Call]:
    """The calls that are still to be made, in the order of the rows.

    Raises:
      contract.UserError: a row is wrong, or was answered to another prompt.
    """
    for row in self.work.rows():
      yield from self.of_row(row, index)

  def preview(
    self, count: int, index: completions_file.Index, path: pathlib.Path
  ) -> str:
    """The first prompts as they would be sent, for people.

    Raises:
      contract.UserError: there is nothing to ask.
    """
    found = list(itertools.islice(self.todo(index), count))
    if not found:
      raise contract.UserError(
        f'{path} has no {self.nothing}. Run the extraction without'
        f' {self.without} first.'
      )
    return '\n'.join(
      worklist_lib.preview_call(call, call.example_id) for call in found
    )

  def plain_call(
    self, row: rows_lib.Row, key: completions_file.SampleKey, text: str
  ) -> calls.Call:
    """A call whose prompt is one text, without exemplars."""
    content = text
    if self.work.endpoint == calls.CHAT:
      content = [{'role': 'user', 'content': text}]
    return calls.Call(
      kind=key.kind,
      example_id=row.example_id,
      samples=(key.sample,),
      content=content,
      prompt_hash=prompt_lib.text_hash(f'{self.work.endpoint}\0{text}'),
      prompt_bytes=len(text.encode('utf-8', 'surrogatepass')),
      gold='',
      fingerprint=row.fingerprint,
    )

  def is_asked_again(
    self,
    row: rows_lib.Row,
    call: calls.Call,
    before: Mapping[str, Any],
    *,
    unread: bool,
  ) -> bool:
    """Whether a call is made though the file has an answer, `before`, to it.

    Raises:
      contract.UserError: it is an answer to another prompt.
    """
    if before['prompt_hash'] != call.prompt_hash and not self.work.force:
      raise contract.UserError(
        f'{row.place} (id {row.example_id}) was {self.done} already, but by'
        f' another prompt. Restore it, or keep the old {self.answers} with'
        ' --force.'
      )
    return self.work.is_retry(before, unread=unread)
