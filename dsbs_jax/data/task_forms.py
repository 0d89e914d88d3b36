# SPDX-License-Identifier: Apache-2.0
"""What each form of task puts into the encoder and asks of the decoder.

  form          input             target
  finetune      input             label
  label         [label] input     label
  rationale     [rationale] input rationale
  verdict       [verdict] input   yes or no: is the rationale right?
                rationale
  counterfactual
                [counterfactual]  wrong rationale [label] wrong label, of which
                input             the label alone is trained on
  contrast      [rationale] input wrong rationale
  single        input             rationale [label] label
  answer_first  input             label [rationale] rationale

The label is the human one (gt) or the LLM's (llm); outside of train it is
always the human one, because that is what is scored. `[rationale] ` and
`[label] ` are the paper's prefixes; its code writes `explain: ` and
`predict: `.

`verdict` is the self-evaluation of Liu et al. 2024, Mind's Mirror,
arXiv:2311.09214: the student judges the LLM's rationale as the LLM itself did
when asked again. A row without a verdict has neither input nor target.

`counterfactual` is that of Wang et al. 2023, SCOTT, arXiv:2305.01879, in the
form of their code: the student is given a rationale that the LLM wrote for a
wrong label, and must answer as the rationale says,

  loss = - log p(wrong label | [counterfactual] input, wrong rationale)

so that it learns to heed rationales rather than to guess past them. A row
without such a rationale has neither input nor target. SCOTT's other loss is
that of `single`, here without its prefix `[factual]`.

`contrast` is no task but the view that the contrastive term reads beside that
of `rationale`, see `core/losses/contrast`.

`single` is the paper's ablation, equation 5. `answer_first` is not in the
paper: Wadhwa et al. 2024, arXiv:2406.14511, find that rationales teach more
behind the label than before it. Its answer ends at the marker, so a student
need not write the rationale.
"""

import dataclasses
from collections.abc import Iterable

from dsbs_jax import contract
from dsbs_jax.data import benchmark
from dsbs_jax.data.vocabulary import vocabularies

SINGLE_MARKER = '[label]'
# Forms that only some rows have -> the field of an example that those have.
OPTIONAL = {
  'verdict': 'verdict',
  'counterfactual': 'counterfactual',
  'contrast': 'counterfactual',
}
# What divides the two parts of a target that holds both.
MARKERS = {'single': SINGLE_MARKER, 'answer_first': '[rationale]'}


@dataclasses.dataclass(frozen=True)
class Prefixes:
  """What stands before the input of a task that has a prefix."""

  label: str = '[label] '
  rationale: str = '[rationale] '
  verdict: str = '[verdict] '
  counterfactual: str = '[counterfactual] '

  def of(self, form: str) -> str:
    """The prefix of a form, '' where it has none."""
    form = {'contrast': 'rationale'}.get(form, form)
    return getattr(self, form) if form in contract.TASK_IDS else ''


PREFIXES = {
  'paper': Prefixes(),
  'code': Prefixes(
    label='predict: ',
    rationale='explain: ',
    verdict='evaluate: ',
    counterfactual='counterfactual: ',
  ),
}


def prefixes(style: str) -> Prefixes:
  """The prefixes of a style; UserError where none has this name."""
  if style not in PREFIXES:
    raise contract.UserError(
      f'prefixes is {style!r}, expected {" or ".join(PREFIXES)}. Correct'
      ' PREFIXES, DSBS_PREFIXES or --prefixes.'
    )
  return PREFIXES[style]


def label_source(name: contract.TaskName, split: str) -> str:
  """Whose label a task uses in a split: 'gt' or 'llm'."""
  llm = name.label_source == 'llm' and split == 'train'
  return 'llm' if llm else 'gt'


def source(form: str, example: benchmark.Example, *, prefix: str) -> str:
  """The encoder's text for one example, '' where the form has none for it."""
  if form in OPTIONAL and not getattr(example, OPTIONAL[form]):
    return ''
  text = prefix + example.input
  return f'{text} {example.rationale}' if form == 'verdict' else text


def target(
  form: str,
  *,
  label: str,
  rationale: str,
  verdict: str = '',
  counterfactual: tuple[str, str] | tuple[()] = (),
) -> str:
  """The decoder's text for one example, without an end marker."""
  if form == 'rationale':
    return rationale
  if form == 'verdict':
    return verdict
  if form == 'contrast':
    return ''.join(counterfactual[1:])
  if form == 'counterfactual':
    return read_only(counterfactual) + ' '.join(counterfactual[:1])
  if form == 'single':
    return f'{rationale} {MARKERS[form]} {label}'
  if form == 'answer_first':
    return f'{label} {MARKERS[form]} {rationale}'
  return label


def label_of(form: str, text: str) -> str:
  """The label in a target that `target` has made."""
  if form == 'answer_first':
    return text.partition(f' {MARKERS[form]} ')[0]
  return text.rpartition(f' {MARKERS[form]} ')[2] if form in MARKERS else text


def read_only(counterfactual: tuple[str, str] | tuple[()]) -> str:
  """What stands before the label in a target of `counterfactual`."""
  return ''.join(f'{said} {SINGLE_MARKER} ' for said in counterfactual[1:])


def answer(name: str, text: str, *, vocabulary: vocabularies.Vocabulary) -> str:
  """The part of a decoded text that the metric scores.

  Args:
    text: what the decoder wrote, with unknown ids (`decode_with_unknown`).
    vocabulary: the vocabulary of the text; the marker is looked for as this
      vocabulary writes it.

  Returns:
    The text itself; for `_single` what follows its last marker ('' where it
    has none); for `_answer_first` what precedes its first one (all of the
    text where it has none). Unknown ids are left out.
  """
  form = contract.parse_task_name(name).form
  if form not in MARKERS:
    return vocabulary.without_unknown(text)
  marker = written_marker(form, vocabulary=vocabulary)
  if form == 'answer_first':
    return vocabulary.without_unknown(text.partition(marker)[0]).strip()
  _, found, after = text.rpartition(marker)
  return vocabulary.without_unknown(after).strip() if found else ''


def decode_answer(
  name: str, ids: Iterable[int], *, vocabulary: vocabularies.Vocabulary
) -> str:
  """The part of generated ids that the metric scores, as text: see `answer`."""
  if contract.parse_task_name(name).form not in MARKERS:
    return vocabulary.decode(ids)
  text = vocabulary.decode_with_unknown(ids)
  return answer(name, text, vocabulary=vocabulary)


def written_marker(form: str, *, vocabulary: vocabularies.Vocabulary) -> str:
  """The marker of a form of `MARKERS` as the vocabulary can write it."""
  ids = vocabulary.encode(MARKERS[form])
  return vocabulary.decode_with_unknown(ids).strip()


def round_trip(text: str, *, vocabulary: vocabularies.Vocabulary) -> str:
  """A text as the vocabulary can write it: encoded, then decoded.

  Gold labels pass through this before they are compared, so that what a
  vocabulary normalises (blanks, NFKC) or cannot write is no error of the
  model.
  """
  return vocabulary.decode(vocabulary.encode(text))
