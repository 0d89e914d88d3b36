# SPDX-License-Identifier: Apache-2.0
"""Shapes of a run's batches: from --batch, from prepared data, or typical."""

import re
from collections.abc import Mapping, Sequence

from dsbs_jax import contract
from dsbs_jax.data import register
from dsbs_jax.data.batching import row_shapes
from dsbs_jax.data.prepared import views
from dsbs_jax.training import session, train_config

_GIVEN = re.compile(r'(?:([a-z]+):)?(\d+)x(\d+)/(\d+)')
# What packing chose for 64 pairs of CommonsenseQA with the public vocabulary
# where rows come in multiples of 32: 79 % of the encoder's places are full.
_TYPICAL_PAIRS = 64
_TYPICAL = {
  contract.LABEL_VIEW: row_shapes.Shape(32, 128, 16),
  contract.RATIONALE_VIEW: row_shapes.Shape(32, 128, 96),
}
# And where rows come in any number: one device, one microbatch.
_TYPICAL_ALONE = {
  contract.LABEL_VIEW: row_shapes.Shape(36, 104, 16, 3408, 224),
  contract.RATIONALE_VIEW: row_shapes.Shape(35, 112, 72, 3472, 2128),
}

Views = Mapping[str, row_shapes.Shape]


def given(texts: Sequence[str]) -> dict[str, row_shapes.Shape]:
  """View -> shape, of texts such as 'label:32x128/16', rows x inputs / targets.

  Args:
    texts: one per view; a single one may leave the name out.

  Raises:
    UserError: a text is no such shape, or two are of one view.
  """
  found = {}
  for text in texts:
    match = _GIVEN.fullmatch(text)
    view = match and (match[1] or contract.MIXTURE_VIEW)
    sizes = [int(number) for number in match.groups()[1:]] if match else []
    if view not in contract.VIEWS or 0 in sizes:
      raise contract.UserError(
        f'--batch is {text!r}, expected [view:]ROWSxINPUTS/TARGETS such as'
        f' label:32x128/16, with a view of {", ".join(contract.VIEWS)}.'
      )
    if view in found:
      raise contract.UserError(
        f'--batch gives two shapes of {view}, expected one per view. Name the'
        ' views: --batch=label:32x128/16 --batch=rationale:32x128/96.'
      )
    found[view] = row_shapes.Shape(*sizes)
  return found


def of_data(run: train_config.TrainConfig, *, multiple: int) -> dict:
  """View -> the usual shape of the run's own prepared data.

  Rows come in multiples of a number.
  """
  source = register.source(
    data_dir=run.data_dir, vocabulary=run.vocabulary, prefixes=run.prefixes
  )
  data = session.open_data(run, source, row_multiple=multiple)
  return {view: packer.shapes[0] for view, packer in data.packers.items()}


def typical(run: train_config.TrainConfig, *, multiple: int) -> dict:
  """View -> shape without data: CommonsenseQA's, for the run's batch size.

  The run's task decides which views there are; `multiple` as in `of_data`.
  """
  name = views.own_name(run.mixture_or_task_name)
  form = 'dsbs' if name is None else name.form
  alone = multiple == 1 and run.skip_padding
  label, rationale = (_TYPICAL_ALONE if alone else _TYPICAL).values()
  longer = label.inputs + rationale.targets
  longest = label.targets + rationale.targets
  shapes = {
    'label': rationale if form in ('single', 'answer_first') else label,
    'rationale': rationale,
    # The rationale is a part of its inputs; 'yes' is as long as a label.
    'verdict': label._replace(
      inputs=row_shapes.round_up(longer, row_shapes.MULTIPLE),
      input_slots=label.input_slots
      and label.input_slots + rationale.target_slots,
    ),
    # A rationale and a label are its targets.
    'counterfactual': rationale._replace(
      targets=row_shapes.round_up(longest, row_shapes.MULTIPLE),
      target_slots=label.target_slots + rationale.target_slots,
    ),
    'contrast': rationale,
  }
  wanted = [form if form in shapes else 'label']
  if form == 'dsbs':
    wanted = ['label', 'rationale', *run.objective.further_views]
  elif form == 'single' and run.objective.counterfactual_weight:
    wanted.append('counterfactual')
  chosen = {}
  for view in wanted:
    shape = shapes[view]
    rows, inputs, targets = (
      -(-number * run.batch_size // _TYPICAL_PAIRS)
      for number in (shape.rows, shape.input_slots, shape.target_slots)
    )
    chosen[view] = shape._replace(
      rows=row_shapes.round_up(rows, multiple),
      input_slots=inputs,
      target_slots=targets,
    )
  return chosen
