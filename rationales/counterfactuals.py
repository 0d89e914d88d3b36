# SPDX-License-Identifier: Apache-2.0
"""A pass that asks the LLM for rationales that argue for wrong labels.

By default the prompt is that of the second pass (`--rationalize`), the
benchmark's own exemplars with their labels as hints, where the row's hint is a
wrong label in place of the human one.

Source: the counterfactual data of Wang et al. 2023, SCOTT, arXiv:2305.01879,
where the teacher reads the question and a perturbed answer, too. Its
contrastive decoding compares the teacher's probabilities of each next token
under two prompts; servers of OpenAI's protocol do not decode so, and it is not
built.
"""

import dataclasses
from collections.abc import Iterator

from dsbs_jax import contract
from dsbs_jax.data import parsing
from dsbs_jax.data.source import counterfactuals
from dsbs_jax.data.source import rows as rows_lib
from rationales import further_passes
from rationales.record import calls, completions_file

TEMPLATE = further_passes.Template(
  'counterfactual_prompt',
  fields=('input', 'label'),
  needed=('input', 'label'),
)


@dataclasses.dataclass(frozen=True)
class CounterfactualPass(further_passes.FurtherPass):
  """The calls for rationales of one wrong label per row.

  Rows whose completions the benchmark cannot read are skipped, and so are rows
  without another label than the human one and the LLM's. Where the LLM has
  come to say the wrong label itself, another one is asked about.

  Attributes:
    template: of the prompt, as `TEMPLATE.load` returns it; None takes the
      benchmark's own, with a hint.

  Raises:
    contract.UserError: the benchmark's labels are open, or the prompt has no
      hint.
  """

  template: str | None = None

  nothing = 'row without a counterfactual, expected some to ask about'
  without = '--counterfactuals'
  done, answers = 'argued about', 'counterfactuals'

  def __post_init__(self):
    counterfactuals.check(self.work.benchmark)
    if self.template is None and '{label}' not in self.work.prompt.hint:
      raise contract.UserError(
        'The prompt has no "hint" with {label}, expected one, by which'
        ' --counterfactuals asks for a wrong label. Add it to the prompt file,'
        ' or give --counterfactual_prompt=FILE.'
      )

  def of_row(
    self, row: rows_lib.Row, index: completions_file.Index
  ) -> Iterator[calls.Call]:
    """See `further_passes.FurtherPass`."""
    benchmark = self.work.benchmark
    said = self.work.llm_answer(row, index)
    if not isinstance(said, parsing.Parsed):
      return
    wrong = counterfactuals.wrong_labels(benchmark, row, said.label)
    if not wrong:
      return
    key = completions_file.SampleKey(
      completions_file.COUNTERFACTUAL, row.example_id, 0
    )
    before = index.read(key)
    known = before and before.get('hint') in wrong
    label = before['hint'] if known else counterfactuals.draw(wrong, row)
    call = dataclasses.replace(
      self._call(row, key, label), replaces=index.offset(key)
    )
    if not known:
      yield call
      return
    outcome = benchmark.parse(before['text'])
    unread = not counterfactuals.argued(benchmark, outcome, label)
    if self.is_asked_again(row, call, before, unread=unread):
      yield call

  def _call(
    self, row: rows_lib.Row, key: completions_file.SampleKey, label: str
  ) -> calls.Call:
    if self.template is None:
      return self.work.call(row, (0,), hint=label, kind=key.kind)
    fields = {'input': row.input, 'label': label}
    text = TEMPLATE.fill(self.template, fields)
    call = self.plain_call(row, key, text)
    return dataclasses.replace(call, gold=label, hinted=True)
