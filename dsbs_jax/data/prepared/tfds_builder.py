# SPDX-License-Identifier: Apache-2.0
"""(TF) Writes examples as a TFDS dataset of array_record files."""

import contextlib
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dsbs_jax.data import benchmark
from dsbs_jax.data.prepared import fingerprints


def _record(example: benchmark.Example) -> dict[str, Any]:
  """What TFDS writes of an example: its fields, lists as JSON arrays."""
  return {field: getattr(example, field) for field in fingerprints.FIELDS} | {
    fingerprints.OPTIONS: json.dumps(example.options),
    fingerprints.VERDICT: example.verdict,
    fingerprints.COUNTERFACTUAL: json.dumps(example.counterfactual),
    fingerprints.LABEL_PROBS: json.dumps(example.label_probs),
  }


def build(
  dataset: str,
  splits: Mapping[str, Iterable[benchmark.Example]],
  *,
  data_dir: pathlib.Path,
  version: str,
  metadata: Mapping[str, Any],
  counts: Callable[[str], Mapping[str, Any]],
) -> None:
  """Runs TFDS's builder.

  Args:
    dataset: its TFDS name.
    splits: examples of each split; each is walked through once.
    data_dir: gets the folder `dataset/version`.
    version: of the format, such as '1.0.0'.
    metadata: goes into metadata.json, and with it 'splits': rows, fingerprint
      and counts of each.
    counts: split -> more metadata of it, called once it is written.

  Raises:
    UserError: a split is empty, or an example is not sound.
  """
  # Imported here, with TensorFlow: only writing needs them.
  import tensorflow_datasets as tfds

  class Builder(
    tfds.core.GeneratorBasedBuilder, skip_registration=True
  ):  # the name is an argument here, so the class cannot be a module's
    VERSION = tfds.core.Version(version)
    url_infos = {}  # nothing is downloaded, so no checksum file is looked for

    def _info(self):
      return _dataset_info(self, metadata)

    def _split_generators(self, dl_manager):
      del dl_manager
      return {s: self._generate_examples(s, splits[s]) for s in splits}

    def _generate_examples(
      self, split: str, examples: Iterable[benchmark.Example]
    ):
      digest = fingerprints.Digest()
      name = f'{metadata["benchmark"]} {split}'
      for position, example in enumerate(fingerprints.checked(examples, name)):
        digest.add(example)
        yield position, _record(example)
      self.info.metadata['splits'][split] = {
        'rows': digest.rows,
        'fingerprint': digest.hexdigest(),
        **counts(split),
      }

  Builder.name = dataset
  builder = Builder(data_dir=data_dir, file_format='array_record')
  # TFDS speaks of downloads here; the caller reports its own progress.
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare()


def _dataset_info(builder: Any, metadata: Mapping[str, Any]) -> Any:
  """TFDS's description of a dataset: its features, and our metadata."""
  import numpy as np
  import tensorflow_datasets as tfds

  texts = (
    *fingerprints.TEXT_FIELDS,
    fingerprints.OPTIONS,
    fingerprints.VERDICT,
    fingerprints.COUNTERFACTUAL,
    fingerprints.LABEL_PROBS,
  )
  features = {field: tfds.features.Text() for field in texts}
  features['index'] = tfds.features.Scalar(np.int64)
  return tfds.core.DatasetInfo(
    builder=builder,
    description=f'{metadata["benchmark"]}: inputs, labels and LLM rationales.',
    features=tfds.features.FeaturesDict(features),
    disable_shuffling=True,
    metadata=tfds.core.MetadataDict({**metadata, 'splits': {}}),
  )
