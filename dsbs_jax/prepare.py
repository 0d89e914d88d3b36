# SPDX-License-Identifier: Apache-2.0
"""python -m dsbs_jax.prepare --benchmark=cqa --source=... --data_dir=..."""

from absl import flags

from dsbs_jax.data import download
from dsbs_jax.data.source import filters
from dsbs_jax.preparing import prepare
from dsbs_jax.runtime import command

S, B = flags.DEFINE_string, flags.DEFINE_bool
FLAGS = {
  'benchmark': S('benchmark', '', 'Name of the benchmark, such as cqa.'),
  'source': S(
    'source', '', f'Folder, zip file or URL; published: {download.PUBLISHED}'
  ),
  'data_dir': S('data_dir', '', 'Where the prepared dataset is written.'),
  'splits': flags.DEFINE_list('splits', [], 'Default: all that there are.'),
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
