# SPDX-License-Identifier: Apache-2.0
"""(TF) Writes prepared examples as a TFDS dataset, whole or not at all."""

import collections
import contextlib
import errno
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark
from dsbs_jax.data.prepared import (
  fingerprints,
  metadata_file,
  rationale_file,
  store,
)

Split = Iterable[benchmark.Example]


def write(
  name: str,
  splits: Mapping[str, Split],
  *,
  data_dir: str | os.PathLike[str],
  about: Mapping[str, Any],
  counts: Callable[[str], Mapping[str, Any]] = lambda split: {},
  overwrite: bool = False,
) -> store.Prepared:
  """Writes a prepared dataset, whole or not at all.

  Args:
    splits: examples of each split; each is walked through once.
    about: source and options, kept in the metadata; JSON values.
    counts: split -> more metadata of it, called once it is written.

  Returns:
    The dataset, read back and checked.

  Raises:
    UserError: it exists, a split is empty, or an example is not sound.
  """
  target = store.find_folder(name, data_dir)
  if target.exists() and not overwrite:
    raise contract.UserError(
      f'{target} exists already. Give another --data_dir, or --overwrite to'
      ' replace it.'
    )
  root = pathlib.Path(data_dir).expanduser()
  root.mkdir(parents=True, exist_ok=True)
  scratch = pathlib.Path(tempfile.mkdtemp(prefix='.preparing-', dir=root))
  writers = {
    split: rationale_file.Writer(rationale_file.path(scratch, split))
    for split in splits
  }

  def all_counts(split: str) -> dict[str, Any]:
    kept = writers[split].about
    return {**counts(split), **({rationale_file.KEY: kept} if kept else {})}

  try:
    _build(
      {split: writers[split].watch(found) for split, found in splits.items()},
      data_dir=scratch,
      metadata={**about, 'benchmark': name, 'format': store.VERSION},
      counts=all_counts,
    )
    for split, writer in writers.items():
      if writer.about:
        file = rationale_file.path(store.folder(name, scratch), split)
        os.replace(rationale_file.path(scratch, split), file)
    metadata_file.seal(store.folder(name, scratch) / 'metadata.json')
    written = store.read(name, scratch)
    for split in written.splits:  # read back, which compares fingerprints
      collections.deque(written.examples(split), maxlen=0)
    target.parent.mkdir(exist_ok=True)
    _replace(target, store.folder(name, scratch))
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  return store.read(name, data_dir)


def _build(
  splits: Mapping[str, Split],
  *,
  data_dir: pathlib.Path,
  metadata: Mapping[str, Any],
  counts: Callable[[str], Mapping[str, Any]],
) -> None:
  """Runs TFDS's builder; it adds rows and fingerprint of splits to metadata."""
  # Imported here, with TensorFlow: only writing needs them.
  import tensorflow_datasets as tfds

  class Builder(
    tfds.core.GeneratorBasedBuilder, skip_registration=True
  ):  # the name is an argument here, so the class cannot be a module's
    VERSION = tfds.core.Version(store.VERSION)
    url_infos = {}  # nothing is downloaded, so no checksum file is looked for

    def _info(self):
      return _dataset_info(self, metadata)

    def _split_generators(self, dl_manager):
      del dl_manager
      return {s: self._generate_examples(s, splits[s]) for s in splits}

    def _generate_examples(self, split: str, examples: Split):
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

  Builder.name = store.dataset_name(metadata['benchmark'])
  builder = Builder(data_dir=data_dir, file_format='array_record')
  # TFDS speaks of downloads here; the caller reports its own progress.
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare()


def _record(example: benchmark.Example) -> dict[str, Any]:
  """What TFDS writes of an example: its fields, lists as JSON arrays."""
  fields = (*fingerprints.FIELDS, fingerprints.VERDICT)
  return {field: getattr(example, field) for field in fields} | {
    field: json.dumps(getattr(example, field))
    for field in fingerprints.ARRAY_FIELDS
  }


def _dataset_info(builder: Any, metadata: Mapping[str, Any]) -> Any:
  """TFDS's description of a dataset: its features, and our metadata."""
  import numpy as np
  import tensorflow_datasets as tfds

  texts = (
    *fingerprints.TEXT_FIELDS,
    fingerprints.VERDICT,
    *fingerprints.ARRAY_FIELDS,
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


def _replace(target: pathlib.Path, new: pathlib.Path) -> None:
  """Puts a dataset in the place of another one, if there is one."""
  replaced = store.replaced(target)
  while new.exists():
    if target.exists():
      shutil.rmtree(replaced, ignore_errors=True)
      os.replace(target, replaced)
    try:
      os.replace(new, target)
    except OSError as error:
      if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
        raise  # else a reader has just put the old one back: see `find_folder`
  shutil.rmtree(replaced, ignore_errors=True)
