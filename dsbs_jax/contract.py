# SPDX-License-Identifier: Apache-2.0
"""What every room agrees on: dimension letters, batch keys, ids, task names.

Dimension legend, used by every einsum and shape comment in the project:

  B  rows of a batch            S  source (encoder) length
  T  target (decoder) length    D  model width (d_model, emb_dim)
  H  attention heads            K  width of one head (head_dim)
  F  hidden width of the MLP    V  vocabulary size
  N  layers of a stack          G  beams of one row
  C  cells of a batch: data shards x microbatches

A *row group* is a dict of arrays that share their number of rows (the token
indices: of cells):

  encoder_input_tokens   [B, S] int32    source ids, 0 where padded
  decoder_input_tokens   [B, T] int32    targets shifted right, 0 as start
  decoder_target_tokens  [B, T] int32    target ids, 0 where padded
  decoder_loss_weights   [B, T] float32  1 on real targets (EOS too), else 0;
                         also 0 on targets that are only read
  decoder_task_ids       [B, T] int32    a value of TASK_IDS, 0 where the
                         weight is 0
  packed rows add, all int32: encoder_segment_ids [B, S],
  encoder_positions [B, S], decoder_segment_ids [B, T],
  decoder_positions [B, T]; segments count from 1, 0 = padding
  decoder_pair_ids       [B, T] int32    on request: the example of the batch
                         that a target is of, from 1, 0 = padding
  decoder_soft_ids, decoder_soft_probs [B, T, W] int32, float32  on request: W
                         tokens that a label may go on with, and the LLM's
                         probabilities of them; 0 without a soft target
  encoder_token_index, decoder_token_index [C, n] int32  on request: where in
                         the rows the real tokens of each cell are, see
                         core/layers/unpadding.py

A *batch* is a dict of row groups. Paired batches hold {'label': rows,
'rationale': rows}, and 'verdict', 'counterfactual' or 'contrast' where these
have a weight: views of the same examples whose target lengths may differ. A
single task of this project gives one of them, so that its steps are those of
that view in a pair; sampled mixtures give {'mixture': rows}.
"""

import dataclasses
import re


class UserError(ValueError):
  """A mistake of the user's: a wrong value, file or combination of settings.

  The message is for them: the value, what was expected, where it stands and
  what to do. Commands print it as one line and end with status 2; any other
  exception is a bug and keeps its traceback.
  """


PAD_ID = 0
EOS_ID = 1
BOS_ID = 2  # of Gemma's vocabulary

# Values of decoder_task_ids: which term of the objective a target token is in.
LABEL_ID = 1
RATIONALE_ID = 2
VERDICT_ID = 3
COUNTERFACTUAL_ID = 4
CONTRAST_ID = 5
# The tasks of a row by their names, which are those of their views, too.
TASK_IDS = {
  'label': LABEL_ID,
  'rationale': RATIONALE_ID,
  'verdict': VERDICT_ID,
  'counterfactual': COUNTERFACTUAL_ID,
  'contrast': CONTRAST_ID,
}

# Row groups of a batch, in the order in which the train step visits them.
LABEL_VIEW = 'label'
RATIONALE_VIEW = 'rationale'
VERDICT_VIEW = 'verdict'
COUNTERFACTUAL_VIEW = 'counterfactual'
CONTRAST_VIEW = 'contrast'
MIXTURE_VIEW = 'mixture'
VIEWS = (*TASK_IDS, MIXTURE_VIEW)

LABEL_SOURCES = ('gt', 'llm')
# Forms of task without a label, whose names have no source of labels.
# That of 'contrast' names the view alone: it is no task.
WITHOUT_LABEL = ('rationale', 'verdict', 'counterfactual', 'contrast')
FORMS = (
  'finetune',
  'label',
  *WITHOUT_LABEL[:-1],
  'single',
  'answer_first',
  'dsbs',
)

_NAME = re.compile(
  r'(?P<benchmark>[a-z][a-z0-9_]*?)'
  r'(?:_(?P<source>gt|llm)_(?P<form>finetune|label|single|answer_first|dsbs)'
  rf'|_(?P<without_label>{"|".join(WITHOUT_LABEL)}))'
)


@dataclasses.dataclass(frozen=True)
class TaskName:
  """The parts of a task's or mixture's name.

  `cqa_gt_label` is ('cqa', 'gt', 'label'); a rationale task has no label, so
  `cqa_rationale` is ('cqa', None, 'rationale').
  """

  benchmark: str
  label_source: str | None
  form: str

  def __str__(self) -> str:
    parts = (self.benchmark, self.label_source, self.form)
    return '_'.join(part for part in parts if part)


def parse_task_name(name: str) -> TaskName:
  """Splits a task or mixture name by the project's grammar.

  Args:
    name: `{benchmark}_{gt|llm}_{finetune|label|single|answer_first|dsbs}`
      or `{benchmark}_{rationale|verdict|counterfactual|contrast}`.

  Raises:
    UserError: the name does not follow the grammar.
  """
  match = _NAME.fullmatch(name) if isinstance(name, str) else None
  if match is None:
    raise UserError(
      f'{name!r} is not a task name of this project, expected'
      ' BENCHMARK_{gt|llm}_{finetune|label|single|answer_first|dsbs} or'
      f" BENCHMARK_{{{'|'.join(WITHOUT_LABEL)}}}, such as 'cqa_gt_dsbs'."
    )
  form = match['form'] or match['without_label']
  return TaskName(match['benchmark'], match['source'], form)


def term_of(form: str) -> int:
  """The task id that the target tokens of a task of this form carry."""
  return TASK_IDS.get(form, LABEL_ID)
