# SPDX-License-Identifier: Apache-2.0
"""(TF) The seqio feature converter that keeps each target token's task.

The plain `seqio.EncDecFeatureConverter` works on every task and mixture of
this project too: it ignores `targets_task_ids`. This one packs or pads it
along with the targets, as `decoder_task_ids`.
"""

from collections.abc import Mapping

import seqio
import tensorflow as tf

_SPEC = seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)


class DistillationFeatureConverter(seqio.EncDecFeatureConverter):
  """Encoder-decoder features with `decoder_task_ids`.

  `task_feature_lengths` needs the key `targets_task_ids`, as long as
  `targets`; `with_task_ids` adds it.
  """

  TASK_FEATURES = {
    **seqio.EncDecFeatureConverter.TASK_FEATURES,
    'targets_task_ids': _SPEC,
  }
  MODEL_FEATURES = {
    **seqio.EncDecFeatureConverter.MODEL_FEATURES,
    'decoder_task_ids': _SPEC,
  }

  def _convert_example(
    self, features: Mapping[str, tf.Tensor]
  ) -> Mapping[str, tf.Tensor]:
    converted = super()._convert_example(features)
    return {**converted, 'decoder_task_ids': features['targets_task_ids']}

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    """Lengths of the converted features."""
    lengths = super().get_model_feature_lengths(task_feature_lengths)
    return {**lengths, 'decoder_task_ids': task_feature_lengths['targets']}


def with_task_ids(task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
  """Lengths of inputs and targets, with that of `targets_task_ids` added."""
  return {
    **task_feature_lengths,
    'targets_task_ids': task_feature_lengths['targets'],
  }
