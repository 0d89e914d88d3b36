# SPDX-License-Identifier: Apache-2.0
"""The accuracies that the paper prints as numbers.

Source: arXiv 2305.02301v2, Tables 1 and 2: test accuracy in percent of a
pre-trained T5-Base (220M parameters) on all of the training data with human
labels and rationales by PaLM 540B. On SVAMP, an equation with the right value
is right. The paper's other results are in its figures only.
"""

from dsbs_jax.runs import run_names

MODEL = 'T5-Base 220M'
SOURCE = 'Hsieh et al. 2023, Tables 1 and 2'

ACCURACY = {
  ('esnli', 'gt_finetune'): 88.38,
  ('esnli', 'gt_dsbs'): 89.51,
  ('esnli', 'gt_single'): 88.88,
  ('anli1', 'gt_finetune'): 43.58,
  ('anli1', 'gt_dsbs'): 49.58,
  ('anli1', 'gt_single'): 43.50,
  ('cqa', 'gt_finetune'): 62.19,
  ('cqa', 'gt_dsbs'): 63.29,
  ('cqa', 'gt_single'): 61.37,
  ('svamp', 'gt_finetune'): 62.63,
  ('svamp', 'gt_dsbs'): 65.50,
  ('svamp', 'gt_single'): 63.00,
}


def accuracy(point: run_names.Coordinates) -> float | None:
  """The paper's test accuracy of a setting in percent, None if not printed."""
  if point.fraction != 1.0 or point.setting:
    return None
  return ACCURACY.get((point.benchmark, point.method))
