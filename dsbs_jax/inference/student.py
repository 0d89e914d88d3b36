# SPDX-License-Identifier: Apache-2.0
"""A trained student, loaded and ready to predict."""

import dataclasses
from typing import Any

from dsbs_jax.inference import (
  length_buckets,
  output_split,
  predictor,
  student_config,
)
from dsbs_jax.inference.backends import ct2_engine, decode_functions


@dataclasses.dataclass(frozen=True)
class LoadedStudent:
  """A student, and JSON values on which every prediction depends."""

  predictor: predictor.Predictor
  decode_fns: decode_functions.DecodeFns | ct2_engine.DecodeFns
  fingerprint: dict[str, Any]


def load_student(
  config: student_config.StudentConfig, *, shapes: length_buckets.BatchShapes
) -> LoadedStudent:
  """Reads the checkpoint of a student that predicts in such batches."""
  vocabulary = config.load_vocabulary()
  predictor_config = config.predictor_config()
  most = max(1, len(predictor_config.labels), config.max_given_choices)
  loaded = config.load(
    generates=predictor_config.generates_labels, num_options=most
  )
  lengths = {
    'max_decode_len': config.max_decode_len,
    'max_rationale_len': config.max_rationale_len,
    'stop': ()
    if config.rationales
    else output_split.stop_ids(predictor_config.form, vocabulary=vocabulary),
  }
  if loaded.engine is None:
    decode_fns = decode_functions.DecodeFns(
      config.model,
      loaded.params,
      mesh=loaded.mesh,
      num_beams=config.num_beams,
      **lengths,
    )
  else:
    decode_fns = ct2_engine.DecodeFns(loaded.engine, **lengths)
  fingerprint = dataclasses.asdict(predictor_config) | {
    'step': loaded.step,
    'vocabulary': vocabulary.fingerprint,
    'benchmark': config.benchmark,
    **(
      loaded.facts or {'parameters': student_config.hash_params(loaded.params)}
    ),
  }
  return LoadedStudent(
    predictor.Predictor(
      predictor_config, decode_fns, vocabulary=vocabulary, shapes=shapes
    ),
    decode_fns,
    fingerprint,
  )
