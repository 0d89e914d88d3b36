# SPDX-License-Identifier: Apache-2.0
"""The objective of Distilling Step-by-Step: its terms and their weights.

  loss = sum over tasks of
         weight * (sum of the losses of its target tokens / their number)

The paper has two tasks, labels with the weight alpha and rationales with the
weight 1 - alpha; verdicts and counterfactuals are further ones. Sums and
numbers are those of the *whole* batch. A task without tokens contributes 0, and
one without a weight is no part of the program. Soft labels add a term of their
own:

       + soft_label_weight * mean over the label tokens with a soft target q of
         T^2 KL(q || softmax(logits / T)), with T the soft_label_temperature

and so does the contrast of rationales for right and wrong labels, see
`losses/contrast`. `losses/weighted_loss` computes the loss, and
`gradients/batch_gradient` says how the parts of a batch are added up.
"""

import dataclasses
import math
from typing import Self

import jax

from dsbs_jax import contract
from dsbs_jax.core import alpha_schedules


@dataclasses.dataclass(frozen=True)
class Distillation:
  """The weights of the loss.

  Attributes:
    alpha: weight of the label term, in [0, 1]; the rationale term has the
      weight 1 - alpha. The paper's lambda is (1 - alpha) / alpha.
    z_loss: factor of the squared log normalizer that is added to each token's
      loss, as in T5X (1e-4 there); 0 as in the paper.
    label_smoothing: probability mass spread evenly over all wrong tokens, in
      [0, 1); the entropy of the smoothed target is subtracted, so that a
      perfect prediction costs 0. 0 as in the paper.
    mi_weight: weight of the term that ties the rationale of an example to its
      label, see `losses/mutual_information`; 0 as in the paper.
    verdict_weight: weight of the verdict task, see `data/task_forms`; 0,
      without that task, as in the paper. Liu et al. 2024 (Mind's Mirror, arXiv
      2311.09214) distil self-evaluation beside rationales in this way.
    counterfactual_weight: weight of the counterfactual task, see
      `data/task_forms`; 0, without that task, as in the paper. Wang et al. 2023
      (SCOTT, arXiv 2305.01879) mix it with their other loss by alpha = 0.5.
    contrast_weight: weight of the term that makes rationales for wrong labels
      less likely, see `losses/contrast`; 0 as in the paper.
    contrast_margin: by how much less, in nats per token.
    soft_label_weight: weight of the term of soft labels, which pulls the
      student towards the LLM's probabilities, see `data/soft_labels`; 0 as in
      the paper.
    soft_label_temperature: T in it; more than 1 softens both sides.
    alpha_schedule: None, or how alpha varies over the run, see
      `core/alpha_schedules`; None as in the paper.

  Source: Hsieh et al. 2023, equations 1, 3 and 4, in the weighting of the
  original code.
  """

  alpha: float = 0.5
  z_loss: float = 0.0
  label_smoothing: float = 0.0
  mi_weight: float = 0.0
  verdict_weight: float = 0.0
  counterfactual_weight: float = 0.0
  contrast_weight: float = 0.0
  contrast_margin: float = 1.0
  soft_label_weight: float = 0.0
  soft_label_temperature: float = 1.0
  alpha_schedule: alpha_schedules.Schedule = None

  def __post_init__(self):
    narrower = {
      'alpha': (lambda value: value <= 1.0, 'in [0, 1]'),
      'label_smoothing': (lambda value: value < 1.0, 'in [0, 1)'),
      'soft_label_temperature': (lambda value: 0 < value < math.inf, '> 0'),
    }
    numbers = (f.name for f in dataclasses.fields(self) if f.type is float)
    for name in numbers:
      most, expected = narrower.get(name, (math.isfinite, '>= 0'))
      value = getattr(self, name)
      if not (isinstance(value, int | float) and value >= 0 and most(value)):
        raise contract.UserError(
          f'{name} is {value!r}, expected a number {expected}.'
        )
    schedule = alpha_schedules.checked(self.alpha_schedule)
    object.__setattr__(self, 'alpha_schedule', schedule)

  def weights(
    self, alpha: jax.Array | None = None
  ) -> dict[str, float | jax.Array]:
    """Task -> weight of its term, in the order in which they are added up.

    Args:
      alpha: float32 scalar, of a step whose alpha follows a schedule; None:
        the attribute.
    """
    if alpha is None:
      alpha = self.alpha
    further = {t: getattr(self, f'{t}_weight') for t in self.further_tasks}
    return {'label': alpha, 'rationale': 1.0 - alpha} | further

  def of_form(self, form: str) -> Self:
    """The objective of a task of a form; one with one term has its plain loss.

    Standard finetuning has nothing for alpha to weigh, and half a loss would be
    clipped at another norm than the original code's.

    Args:
      form: of `contract.FORMS`; a mixture, 'dsbs', has the whole objective.
    """
    if form == 'dsbs':
      return self
    term = contract.term_of(form)
    return dataclasses.replace(
      self,
      alpha=float(term == contract.LABEL_ID),
      mi_weight=0.0,
      verdict_weight=float(term == contract.VERDICT_ID),
      counterfactual_weight=self.counterfactual_weight
      if form == 'single'
      else float(term == contract.COUNTERFACTUAL_ID),
      contrast_weight=0.0,
      alpha_schedule=None,
    )

  @property
  def further_tasks(self) -> tuple[str, ...]:
    """The tasks with a weight beside labels and rationales, in their order."""
    further = 'verdict', 'counterfactual'
    return tuple(task for task in further if getattr(self, f'{task}_weight'))

  @property
  def further_views(self) -> tuple[str, ...]:
    """The views that these and the contrastive term need."""
    contrast = (contract.CONTRAST_VIEW,) if self.contrast_weight else ()
    return self.further_tasks + contrast

  @property
  def needs_pair_ids(self) -> bool:
    """Whether a term ties the views of an example together."""
    return bool(self.mi_weight or self.contrast_weight)

  @property
  def terms(self) -> dict[str, int]:
    """Task -> the task id of its target tokens, of tasks with a weight."""
    return {task: contract.TASK_IDS[task] for task in self.weights()}
