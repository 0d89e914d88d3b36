# SPDX-License-Identifier: Apache-2.0
"""(TF) The seqio feature converter that keeps each target token's task.

The plain `seqio.EncDecFeatureConverter` works on every task and mixture of
this project too: it ignores `targets_task_ids`. This one packs or pads it
along with the targets, as `decoder_task_ids`.
"""

from collections.abc import Mapping

import seqio
import tensorflow as tf

from dsbs_jax import contract

TASK_IDS = 'targets_task_ids'
_SPEC = seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)


class DistillationFeatureConverter(seqio.EncDecFeatureConverter):
  """Encoder-decoder features with `decoder_task_ids`.

  Takes the same lengths as seqio's converter: those of inputs and targets.
  """

  TASK_FEATURES = {
    **seqio.EncDecFeatureConverter.TASK_FEATURES,
    TASK_IDS: _SPEC,
  }
  MODEL_FEATURES = {
    **seqio.EncDecFeatureConverter.MODEL_FEATURES,
    'decoder_task_ids': _SPEC,
  }

  def __call__(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    """Converts a task's or mixture's examples; lengths as for seqio's."""
    if TASK_IDS not in ds.element_spec:
      raise contract.UserError(
        f'the examples have no {TASK_IDS}, expected those of a task of this'
        ' project or of a mixture with mixture_cls=providers.Mixture; seqio.'
        'Mixture drops them.'
      )

    def trim(example):  # seqio trims the targets, an output feature, only
      length = tf.shape(example['targets'])[0]
      ids = example[TASK_IDS][:length]
      tf.debugging.assert_equal(
        *(tf.shape(ids)[0], length),
        f'fewer {TASK_IDS} than targets. Make them behind append_eos.',
      )
      return {**example, TASK_IDS: ids}

    lengths = {
      **task_feature_lengths,
      TASK_IDS: task_feature_lengths['targets'],
    }
    return super().__call__(ds.map(trim, tf.data.AUTOTUNE), lengths)

  def _convert_example(
    self, features: Mapping[str, tf.Tensor]
  ) -> Mapping[str, tf.Tensor]:
    converted = super()._convert_example(features)
    return {**converted, 'decoder_task_ids': features[TASK_IDS]}

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int]
  ) -> Mapping[str, int]:
    """Lengths of the converted features."""
    lengths = super().get_model_feature_lengths(task_feature_lengths)
    return {**lengths, 'decoder_task_ids': task_feature_lengths['targets']}
