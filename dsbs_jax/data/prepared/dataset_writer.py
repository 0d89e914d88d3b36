# SPDX-License-Identifier: Apache-2.0
"""(TF) Writes prepared examples as a TFDS dataset, whole or not at all."""

import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark
from dsbs_jax.data.prepared import (
  metadata_file,
  rationale_file,
  store,
  tfds_builder,
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
    name: the benchmark's name.
    splits: examples of each split; each is walked through once.
    data_dir: the folder above all datasets.
    about: source and options, kept in the metadata; JSON values.
    counts: split -> more metadata of it, called once it is written.
    overwrite: whether an existing dataset is replaced.

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
    tfds_builder.build(
      store.dataset_name(name),
      {split: writers[split].watch(found) for split, found in splits.items()},
      data_dir=scratch,
      version=store.VERSION,
      metadata={**about, 'benchmark': name, 'format': store.VERSION},
      counts=all_counts,
    )
    for split, writer in writers.items():
      if writer.about:
        file = rationale_file.path(store.folder(name, scratch), split)
        os.replace(rationale_file.path(scratch, split), file)
    metadata_file.seal(store.folder(name, scratch) / 'metadata.json')
    _check(store.read(name, scratch))
    target.parent.mkdir(exist_ok=True)
    _replace(target, store.folder(name, scratch))
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  return store.read(name, data_dir)


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


def _check(prepared: store.Prepared) -> None:
  """Reads everything back, which compares fingerprints."""
  for split in prepared.splits:
    for _ in prepared.examples(split):
      pass
