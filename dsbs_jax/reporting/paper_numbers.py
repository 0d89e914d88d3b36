# SPDX-License-Identifier: Apache-2.0
"""What the paper reports, as far as it prints numbers.

Source: arXiv 2305.02301v2, Tables 1 and 2: accuracy in percent on test,
T5-Base (220M parameters, pre-trained), all of the training data, human labels,
rationales by PaLM 540B. SVAMP counts equations of the right value. All other
results of the paper are drawn in figures and not printed.
"""

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


def accuracy(benchmark: str, method: str, fraction: float) -> float | None:
  """The published accuracy of a setting, None where none is printed."""
  if fraction != 1.0:
    return None
  return ACCURACY.get((benchmark, method))
