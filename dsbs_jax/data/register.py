# SPDX-License-Identifier: Apache-2.0
"""A benchmark -> its seqio tasks, by one call at the end of its module.

`register(BENCHMARK)` adds, with {b} the benchmark's name:

  {b}_gt_finetune {b}_llm_finetune          input -> label, no prefix
  {b}_gt_label {b}_llm_label                [label] input -> label
  {b}_rationale                             [rationale] input -> rationale
  {b}_verdict                               [verdict] input rationale -> yes, no
  {b}_gt_single {b}_llm_single              input -> rationale [label] label
  {b}_gt_answer_first {b}_llm_answer_first  input -> label [rationale] rationale
  {b}_gt_dsbs {b}_llm_dsbs                  mixture of label and rationale

No file is read: folder, vocabulary and prefixes are looked up when a task is
used, from `configure` or the environment. The built-in engine reads prepared
data without seqio; `without_seqio` spares it that import.
"""

import contextlib
import functools
import os
import types
from collections.abc import Iterator

from dsbs_jax import contract
from dsbs_jax.data import benchmark as benchmark_lib
from dsbs_jax.data import declared, task_modules
from dsbs_jax.data.benchmark import Benchmark
from dsbs_jax.data.prepared import store, tokens
from dsbs_jax.data.vocabulary import vocabularies, vocabulary_files

# Setting -> the variable that may hold it, and what it is without.
_DEFAULTS = {
  'data_dir': ('DSBS_DATA_DIR', '~/tensorflow_datasets'),
  'vocabulary': ('DSBS_VOCABULARY', vocabulary_files.T5_PUBLIC),
  'prefixes': ('DSBS_PREFIXES', 'paper'),
}
# What `configure` set, and which benchmarks wait for their seqio tasks.
_STATE = types.SimpleNamespace(
  settings={}, seen=set(), waiting=[], keep_waiting=False
)


def register(benchmark: Benchmark) -> None:
  """Makes a benchmark's tasks and mixtures known to seqio."""
  benchmark_lib.add(benchmark)
  if benchmark.name not in _STATE.seen:
    _STATE.seen.add(benchmark.name)
    _STATE.waiting.append(benchmark)
  if not _STATE.keep_waiting:
    build()


def build() -> None:
  """Adds the seqio tasks of all benchmarks that wait for theirs."""
  if not _STATE.waiting:
    return
  # Imported here, with TensorFlow: the built-in engine never comes here.
  from dsbs_jax.data.seqio_tasks import providers

  while _STATE.waiting:
    providers.add(_STATE.waiting.pop(0), source)


@contextlib.contextmanager
def without_seqio() -> Iterator[None]:
  """Inside, `register` notes benchmarks and leaves seqio to `build`."""
  before, _STATE.keep_waiting = _STATE.keep_waiting, True
  try:
    yield
  finally:
    _STATE.keep_waiting = before


def benchmark(
  name: str, *, module: str | None = None, data_dir: str | None = None
) -> Benchmark:
  """The benchmark of this name, found without importing seqio.

  Args:
    module: path or dotted name of a module of your own that registers it.
    data_dir: the folder that `prepare` wrote to, where a benchmark without
      Python has its description; None as in `source`.

  Raises:
    UserError: nothing registers this name, or its description is damaged.
  """
  if module is not None:
    load_module(module)
  with without_seqio():
    known = benchmark_lib.get(name)
    if known is None or (data_dir and declared.is_made(known)):
      folder = source(data_dir=data_dir).data_dir
      said = declared.read(name, folder)
      if said is not None:
        return declare(said)
      if known is None:
        prepared = store.prepared_names(folder)
        return benchmark_lib.find(name, prepared=prepared)
    return benchmark_lib.find(name)


def declare(said: declared.Description) -> Benchmark:
  """Makes and registers the benchmark of a description.

  One that was described otherwise before, such as in another folder, is
  replaced; its seqio tasks stay.

  Raises:
    UserError: a benchmark in Python has the name.
  """
  known = benchmark_lib.get(said.name)
  replaced = known is not None and declared.is_made(known)
  made = declared.make(said)
  if replaced:
    benchmark_lib.add(made, replaces=known)
  register(made)
  return made


def declare_all() -> None:
  """Registers what is described in the folder that `source` names."""
  root = source().data_dir
  for name in store.prepared_names(root):
    # One that is damaged, or has got a module, is an error where it is used.
    with contextlib.suppress(contract.UserError):
      benchmark(name, data_dir=root)
  if not _STATE.keep_waiting:
    build()


def load_module(module: str) -> None:
  """Imports a user's own module, see `task_modules`, without importing seqio."""
  with without_seqio():
    task_modules.load(module)


def configure(**given: str | None) -> None:
  """Sets what tasks read from now on; arguments as in `source`."""
  changed = {key: value for key, value in given.items() if value is not None}
  source(**changed)  # so that a wrong value is an error here
  _STATE.settings |= changed


def source(
  *,
  data_dir: str | None = None,
  vocabulary: str | None = None,
  prefixes: str | None = None,
) -> tokens.Source:
  """Where tasks read from.

  What is not given is what `configure` set, else what the environment has.

  Args:
    data_dir: the folder that `prepare` wrote to; else DSBS_DATA_DIR, else
      ~/tensorflow_datasets.
    vocabulary: a vocabulary spec; else DSBS_VOCABULARY, else the public T5's.
    prefixes: 'paper' or 'code'; else DSBS_PREFIXES, else the paper's.
  """
  given = {'data_dir': data_dir, 'vocabulary': vocabulary, 'prefixes': prefixes}
  chosen = {
    key: given[key]
    or _STATE.settings.get(key)
    or os.environ.get(variable)
    or os.path.expanduser(default)
    for key, (variable, default) in _DEFAULTS.items()
  }
  return tokens.Source(**chosen)


def vocab_size(vocabulary: str | None = None) -> int:
  """Rows of a model's table for a vocabulary: its size, rounded up to 128s."""
  if not isinstance(vocabulary, str | None):
    raise contract.UserError(
      f'VOCABULARY is {vocabulary!r}, expected a text in quotes.'
    )
  spec = source(vocabulary=vocabulary).vocabulary
  if spec == vocabulary_files.T5_PUBLIC:  # known without fetching it
    return 32_128
  return vocabularies.padded_size(vocabularies.load(spec))


# Settings' macros that follow from others where they are None.
DERIVED_MACROS = {'VOCAB_SIZE': (vocab_size, 'VOCABULARY')}


@functools.cache
def vocabulary():
  """The seqio vocabulary of every task, resolved when it is first used.

  Bind a T5X model's vocabularies to it (`@register.vocabulary()` in gin): it
  is equal to the tasks', whatever `configure` and the environment say.
  """
  from dsbs_jax.data.seqio_tasks import providers

  return providers.LazyVocabulary(source)
