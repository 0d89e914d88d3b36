# SPDX-License-Identifier: Apache-2.0
"""A pass that asks the LLM of its rationales: is this right?

Source: the self-evaluation of Liu et al. 2024, Mind's Mirror, arXiv:2311.09214;
the words are this project's.
"""

import dataclasses
from collections.abc import Iterator

from dsbs_jax.data import parsing
from dsbs_jax.data.source import completions
from dsbs_jax.data.source import rows as rows_lib
from rationales import further_passes
from rationales.record import calls, completions_file

TEMPLATE = further_passes.Template(
  'verdict_prompt',
  fields=('input', 'rationale', 'label'),
  needed=('input', 'rationale'),
)
DEFAULT = """\
Here are a question, a line of reasoning about it, and the answer it ends in.

Question: {input}

Reasoning: {rationale}

Answer: {label}

Check the reasoning step by step. Is it right, and is its answer, too? Reply \
with one word, yes or no."""


@dataclasses.dataclass(frozen=True)
class VerdictPass(further_passes.FurtherPass):
  """The calls that ask whether the completions of a file are right.

  Completions that the benchmark cannot read are skipped. One whose text was
  replaced since it was judged is judged again.

  Attributes:
    template: of the prompt, as `TEMPLATE.load` returns it.
  """

  template: str = DEFAULT

  nothing = 'completion without a verdict, expected some to judge'
  without = '--verdicts'
  done, answers = 'judged', 'verdicts'

  def of_row(
    self, row: rows_lib.Row, index: completions_file.Index
  ) -> Iterator[calls.Call]:
    """See `further_passes.FurtherPass`."""
    for sample in range(index.num_samples):
      judged, key = (
        completions_file.SampleKey(kind, row.example_id, sample)
        for kind in (completions_file.COMPLETION, completions_file.VERDICT)
      )
      line = index.read(judged)
      said = line and self.work.benchmark.parse(line['text'])
      if not isinstance(said, parsing.Parsed):
        continue
      fields = {'input': row.input, **dataclasses.asdict(said)}
      call = dataclasses.replace(
        self.plain_call(row, key, TEMPLATE.fill(self.template, fields)),
        about=completions.digest(line['text']),
        replaces=index.offset(key),
      )
      before = index.read(key)
      if before is None or before.get('about') != call.about:
        yield call
        continue
      unread = parsing.verdict(before['text']) == parsing.UNREADABLE
      if self.is_asked_again(row, call, before, unread=unread):
        yield call
