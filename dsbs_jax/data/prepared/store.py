# SPDX-License-Identifier: Apache-2.0
"""Prepared examples on disk: one TFDS dataset per benchmark.

`data_dir/dsbs_<benchmark>/1.0.0/` holds array_record files that
`tfds.builder('dsbs_cqa', data_dir=...).as_data_source('train')` reads, and
`metadata.json`: where the examples come from, with which options, how many,
a fingerprint of their contents, and a digest of all that. Whoever reads a whole
split compares it with its fingerprint. Reading needs no TensorFlow, writing
(`dataset_writer`) does.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.data import benchmark, task_forms
from dsbs_jax.data.prepared import fingerprints, metadata_file, rationale_file
from dsbs_jax.data.remote import buckets, object_store

VERSION = '1.0.0'
LABELS = 'labels'  # of the metadata: the benchmark's when it was prepared
# What a pass of its own asks the LLM for -> how that is called.
_ASKED_FOR = {
  'verdict': 'verdicts of an LLM on its rationales',
  'counterfactual': 'rationales of an LLM for wrong labels',
}


def dataset_name(name: str) -> str:
  """The TFDS name of a benchmark's prepared dataset."""
  return f'dsbs_{name}'


def folder(name: str, data_dir: str | os.PathLike[str]) -> pathlib.Path:
  """Where a benchmark's dataset lies or would; of a bucket's, the copy here."""
  root = pathlib.Path(data_dir).expanduser()
  if object_store.is_bucket(data_dir):
    root = buckets.local_path(data_dir)
  return root / dataset_name(name) / VERSION


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A prepared dataset, opened."""

  name: str
  data_dir: pathlib.Path
  metadata: Mapping[str, Any]

  @property
  def splits(self) -> tuple[str, ...]:
    """The splits that were prepared, in their fixed order."""
    return tuple(s for s in benchmark.SPLITS if s in self.metadata['splits'])

  def num_examples(self, split: str) -> int:
    """Number of examples of a split."""
    return self._about(split)['rows']

  def fingerprint(self, split: str) -> str:
    """Digest of all fields of a split's examples, in order."""
    return self._about(split)['fingerprint']

  def examples(
    self, split: str, *, chunk: int = 4096
  ) -> Iterator[benchmark.Example]:
    """A split's examples, in order.

    Raises:
      UserError: the split was not prepared, or does not read as it was
        written; where a record is another one, once the last one was given.
    """
    self._about(split)
    # Imported here: a training run from cached tokens reads no examples.
    import tensorflow_datasets as tfds

    try:
      # By its name, TFDS would import all datasets that it knows.
      builder = tfds.builder_from_directory(folder(self.name, self.data_dir))
      records = builder.as_data_source(split=split)
      total = len(records)
    except Exception as error:  # of many types, by what a file has lost
      raise self._damaged(split, error) from error
    digest = fingerprints.Digest()
    for start in range(0, total, chunk):
      places = range(start, min(start + chunk, total))
      try:
        read = records.__getitems__(places)
        examples = [_example(record) for record in read]
      except Exception as error:
        raise self._damaged(split, error) from error
      for example in examples:
        digest.add(example)
        yield example
    found = digest.rows, digest.hexdigest()
    wanted = self.num_examples(split), self.fingerprint(split)
    if found != wanted:
      reason = f'rows and fingerprint are {found}, expected {wanted}'
      raise self._damaged(split, reason)

  def rationales_fingerprint(self, split: str) -> str | None:
    """Digest of all rationales of rows with several; None without such rows."""
    about = self._about(split).get(rationale_file.KEY)
    return about and about['sha256']

  def rationales(
    self, split: str
  ) -> Iterator[tuple[int, tuple[benchmark.Rationale, ...]]]:
    """Position and rationales of rows with several; UserError without such."""
    path = folder(self.name, self.data_dir)
    if self.rationales_fingerprint(split) is None:
      raise contract.UserError(
        f'{split} in {path} has one rationale per row, expected several to'
        ' choose from. Ask the LLM for more (extract --samples=5), prepare'
        ' with them and --overwrite, or leave RATIONALE_CHOICE out.'
      )
    about = self._about(split)[rationale_file.KEY]
    yield from rationale_file.read(path, split, about)

  def check_targets(self, name: contract.TaskName) -> None:
    """Raises UserError where most targets of a task in train lack a text."""
    counts = self._about('train').get('counts', {})
    if name.form in task_forms.OPTIONAL:
      field = task_forms.OPTIONAL[name.form]
      if not counts.get(f'{field}s'):
        raise contract.UserError(
          f'{folder(self.name, self.data_dir)} has no {_ASKED_FOR[field]},'
          f' expected some for {name}. Ask for them with dsbs extract'
          f' --{field}s, and prepare the benchmark again with --overwrite.'
        )
      return
    uses_rationales = name.form not in ('finetune', 'label')
    for text, used in (
      ('rationale', uses_rationales),
      ('label', name.label_source == 'llm'),
    ):
      given = counts.get('answered', 0) - counts.get(f'blank_{text}s', 0)
      if used and 2 * given < counts.get('kept', 0):
        raise contract.UserError(
          f'{folder(self.name, self.data_dir)} has {given:,} {text}s of an LLM'
          f' for {counts["kept"]:,} training examples, expected one for most of'
          f' them: {name} would learn to write nothing. Prepare them with the'
          " LLM's answers, --completions=FILE, or without the rows that have"
          ' none, --keep=parsed.'
        )

  def _damaged(self, split: str, reason: Exception | str) -> contract.UserError:
    path = folder(self.name, self.data_dir)
    return contract.UserError(
      f'{split} in {path} is damaged ({" ".join(str(reason).split())[:300]}),'
      ' expected what prepare wrote. Prepare the benchmark again with'
      ' --overwrite.'
    )

  def _about(self, split: str) -> Mapping[str, Any]:
    if split not in self.metadata['splits']:
      raise contract.UserError(
        f'{dataset_name(self.name)} in {self.data_dir} has no split'
        f' {split!r}, expected one of {", ".join(self.splits)}. Prepare it'
        f' with --splits={split}.'
      )
    return self.metadata['splits'][split]


def replaced(target: pathlib.Path) -> pathlib.Path:
  """Where a dataset waits until the one that replaces it is in its place."""
  return target.with_name(f'.{VERSION}.replaced')


def find_folder(name: str, data_dir: str | os.PathLike[str]) -> pathlib.Path:
  """As `folder`; puts back what a kill left, fetches what is in a bucket."""
  target = folder(name, data_dir)
  if object_store.is_bucket(data_dir):
    if not (target / 'metadata.json').is_file():
      buckets.fetch(f'{data_dir.rstrip("/")}/{dataset_name(name)}/{VERSION}')
    return target
  if not target.exists() and replaced(target).exists():
    with contextlib.suppress(OSError):  # a writer, or a reader, was faster
      os.replace(replaced(target), target)
  return target


def exists(name: str, data_dir: str | os.PathLike[str]) -> bool:
  """Whether a benchmark is prepared in a folder."""
  return (find_folder(name, data_dir) / 'metadata.json').is_file()


def read(name: str, data_dir: str | os.PathLike[str]) -> Prepared:
  """Opens a prepared dataset; UserError without one of this version."""
  path = find_folder(name, data_dir) / 'metadata.json'
  if not path.is_file():
    others = prepared_names(data_dir)
    there = f'; prepared there: {", ".join(others)}' if others else ''
    raise contract.UserError(
      f'benchmark {name!r} is not prepared in {str(data_dir)!r} ({path} does'
      f' not exist{there}). Run python -m'
      f' dsbs_jax.prepare --benchmark={name} --data_dir={data_dir}'
      ' --source=..., or correct --data_dir or DSBS_DATA_DIR.'
    )
  try:
    metadata = metadata_file.load(path)
    known = metadata.get('format'), dict(metadata['splits'])
  except (ValueError, AttributeError, KeyError, TypeError) as error:
    raise contract.UserError(
      f'{path} is damaged ({type(error).__name__}: {error}), expected what'
      ' prepare wrote. Prepare the benchmark again with --overwrite.'
    ) from error
  if known[0] != VERSION:
    raise contract.UserError(
      f'{path} has format {metadata.get("format")!r}, expected {VERSION!r}.'
      ' Prepare the benchmark again with --overwrite.'
    )
  root = pathlib.Path(data_dir)
  if object_store.is_bucket(data_dir):
    root = path.parents[2]
  return Prepared(name, root, metadata)


def prepared_names(data_dir: str | os.PathLike[str]) -> list[str]:
  """The benchmarks that are prepared in a folder, sorted."""
  root, prefix = pathlib.Path(data_dir).expanduser(), dataset_name('')
  if object_store.is_bucket(data_dir):
    there = object_store.names(data_dir)
    return [n.removeprefix(prefix) for n in there if n.startswith(prefix)]
  return sorted(
    path.parent.parent.name.removeprefix(prefix)
    for path in root.glob(f'{prefix}*/{VERSION}/metadata.json')
  )


def _example(record: Mapping[str, Any]) -> benchmark.Example:
  texts = (*fingerprints.TEXT_FIELDS, fingerprints.VERDICT)
  arrays = fingerprints.ARRAY_FIELDS
  return benchmark.Example(
    index=int(record['index']),
    **{field: _text(record[field]) for field in texts},
    **{field: tuple(json.loads(_text(record[field]))) for field in arrays},
  )


def _text(value: bytes | str) -> str:
  return value.decode() if isinstance(value, bytes) else value
