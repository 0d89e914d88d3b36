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
FLAGS = {
  'benchmark': S(
    'benchmark',
    '',
    "Name of the benchmark; with --rows, the file's by default.",
  ),
  'rows': S(
    'rows',
    None,
    'Your rows: CSV, TSV, JSON, JSON lines or Parquet, or a folder of such'
    ' files or of a saved Hugging Face dataset.',
  ),
  'validation': S('validation', None, 'File of rows; default: from train.'),
  'test': S('test', None, 'File of rows; default: a tenth of train.'),
  'input': S(
    'input', None, "What the student reads: a column, or '{premise} {claim}'."
  ),
  'label': S('label', None, 'What it answers: a column, or a template.'),
  'labels': L('labels', [], 'All labels that there are, such as yes,no.'),
  'id': S('id', None, "Column of rows' ids; default: their positions."),
  'options': L(
    'options', [], 'Column with the choices of a row, or one per choice.'
  ),
  'answer': S(
    'answer',
    None,
    f'How an LLM ends its answer; default: {declared.ANSWER}',
  ),
  'metric': flags.DEFINE_enum(
    'metric',
    None,
    list(declared.METRICS),
    'exact_match by default; equation_accuracy compares values of numbers.',
  ),
  'source': S(
    'source', '', f'Folder, zip file or URL; published: {download.PUBLISHED}'
  ),
  'data_dir': S('data_dir', '', 'Where the prepared dataset is written.'),
  'splits': L('splits', [], 'Default: all that there are.'),
  'teacher': S('teacher', 'palm', 'Whose completions, and which parser.'),
  'completions': S('completions', None, 'JSONL by id, or a folder of them.'),
  'fraction': flags.DEFINE_float('fraction', 1.0, 'Share of train to keep.'),
  'subset_seed': flags.DEFINE_integer(
    'subset_seed', 0, 'Which subset of that size is drawn.'
  ),
  'keep': flags.DEFINE_enum('keep', 'all', list(filters.KEEP), 'Of train.'),
  'clean': flags.DEFINE_enum('clean', 'none', list(filters.CLEAN), 'Train.'),
  'rationalized': B('rationalized', False, 'Use rationales with hints.'),
  'vocabulary': S('vocabulary', None, 'SentencePiece file, gs:// or bytes.'),
  'train_vocab': flags.DEFINE_integer(
    'train_vocab', None, 'Train a vocabulary of so many pieces.'
  ),
  'module': S('module', None, 'Your own module that registers the benchmark.'),
  'overwrite': B('overwrite', False, 'Replace what was prepared before.'),
}


def main() -> None:
  values = {name: flag.value for name, flag in FLAGS.items()}
  prepare.prepare(prepare.PrepareConfig(**values))


if __name__ == '__main__':
  command.run(main)
