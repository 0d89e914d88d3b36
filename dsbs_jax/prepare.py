# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.prepare --benchmark=cqa --source=... --data_dir=...

Rows of your own, without Python:

  dsbs prepare --rows=rows.csv --input='{question}' --label=answer \\
    --labels=yes,no --data_dir=data
"""

from absl import flags

from dsbs_jax.data import declared
from dsbs_jax.data.remote import download
from dsbs_jax.data.source import filters
from dsbs_jax.preparing import prepare
from dsbs_jax.runtime import command

S, B, L = flags.DEFINE_string, flags.DEFINE_bool, flags.DEFINE_list
FLAGS = (
  S(
    'benchmark',
    '',
    "Name of the benchmark; with --rows, the file's by default.",
  ),
  S(
    'rows',
    None,
    'Your rows: CSV, TSV, JSON, JSON lines or Parquet, or a folder of such'
    ' files or of a saved Hugging Face dataset.',
  ),
  S('validation', None, 'File of rows; default: from train.'),
  S('test', None, 'File of rows; default: a tenth of train.'),
  S('input', None, "What the student reads: a column, or '{premise} {claim}'."),
  S('label', None, 'What it answers: a column, or a template.'),
  L('labels', [], 'All labels that there are, such as yes,no.'),
  S('id', None, "Column of rows' ids; default: their positions."),
  L('options', [], 'Column with the choices of a row, or one per choice.'),
  S('answer', None, f'How an LLM ends its answer; default: {declared.ANSWER}'),
  flags.DEFINE_enum(
    'metric',
    None,
    list(declared.METRICS),
    'exact_match by default; equation_accuracy compares values of numbers.',
  ),
  S('source', '', f'Folder, zip file or URL; published: {download.PUBLISHED}'),
  S('data_dir', '', 'Where the prepared dataset is written.'),
  L('splits', [], 'Default: all that there are.'),
  S('teacher', 'palm', 'Whose completions, and which parser.'),
  S('completions', None, 'JSONL by id, or a folder of them.'),
  flags.DEFINE_float('fraction', 1.0, 'Share of train to keep.'),
  flags.DEFINE_integer('subset_seed', 0, 'Which subset of that size is drawn.'),
  flags.DEFINE_enum('keep', 'all', list(filters.KEEP), 'Of train.'),
  flags.DEFINE_enum('clean', 'none', list(filters.CLEAN), 'Train.'),
  B('rationalized', False, 'Use rationales with hints.'),
  S('vocabulary', None, 'SentencePiece file, gs:// or bytes.'),
  flags.DEFINE_integer(
    'train_vocab', None, 'Train a vocabulary of so many pieces.'
  ),
  S('module', None, 'Your own module that registers the benchmark.'),
  B('overwrite', False, 'Replace what was prepared before.'),
)


def main() -> None:
  prepare.prepare(prepare.PrepareConfig(**command.values(FLAGS)))


if __name__ == '__main__':
  command.run(main)
