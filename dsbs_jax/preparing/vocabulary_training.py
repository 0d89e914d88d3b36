# SPDX-License-Identifier: Apache-2.0
"""Training a SentencePiece vocabulary on a benchmark's own texts."""

import io
from collections.abc import Iterable, Iterator

import sentencepiece

from dsbs_jax import contract
from dsbs_jax.data import task_forms
from dsbs_jax.data.prepared import own_vocabularies, store
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.preparing import count_tables, progress_bars

# What this project itself writes around a benchmark's texts.
_REQUIRED = ''.join(
  style.label + style.rationale for style in task_forms.PREFIXES.values()
).replace(' ', '')


def train(
  texts: Iterable[str], *, size: int, required: str = _REQUIRED
) -> bytes:
  """Trains a SentencePiece model on texts, in T5's manner.

  Unigram pieces, NMT NFKC normalisation, pad 0, eos 1, unk 2, no bos. One
  thread and the texts' own order make it deterministic.

  Args:
    texts: what the vocabulary must write well; newlines count as blanks.
    size: number of pieces wanted; small data gives fewer.
    required: characters that get a piece even if no text holds them.

  Raises:
    UserError: there is no text, or the size is too small for the characters.
  """
  model = io.BytesIO()
  lines = (text.replace('\n', ' ') for text in texts)
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=lines,
      model_writer=model,
      vocab_size=size,
      model_type='unigram',
      normalization_rule_name='nmt_nfkc',
      character_coverage=0.9995,
      required_chars=required,
      hard_vocab_limit=False,
      shuffle_input_sentence=False,
      max_sentence_length=65536,
      num_threads=1,
      pad_id=contract.PAD_ID,
      eos_id=contract.EOS_ID,
      unk_id=vocabularies.UNK_ID,
      bos_id=-1,
      minloglevel=2,
    )
  except (RuntimeError, OSError) as error:
    raise contract.UserError(
      f'no vocabulary of {size} pieces could be trained on these texts: {error}'
    ) from error
  return model.getvalue()


def left_text(prepared: store.Prepared) -> str:
  """Says that rows are missing in a vocabulary's texts, '' where none are."""
  counts = prepared.metadata['splits'].get('train', {}).get('counts', {})
  rows, kept = counts.get('rows', 0), counts.get('kept', 0)
  if kept >= rows:
    return ''
  return (
    f'the vocabulary was trained on the {kept:,} of {rows:,} rows that --keep'
    ' and --clean left. For one of all rows prepare without them, in another'
    ' --data_dir, and give its file by --vocabulary'
  )


def train_and_write(
  prepared: store.Prepared, size: int
) -> tuple[str, str | None]:
  """Trains a vocabulary on everything that the tasks read and write.

  Args:
    prepared: whose train split, or else its first one, is read.
  """
  split = 'train' if 'train' in prepared.splits else prepared.splits[0]
  prefixes = task_forms.prefixes('paper')

  def texts() -> Iterator[str]:
    for example in prepared.examples(split):
      for field in count_tables.FIELDS:
        yield getattr(example, field)
      # Every input of these tasks begins so; few pieces make it short.
      for form in ('label', 'rationale'):
        yield prefixes.of(form) + example.input

  with progress_bars.progress() as progress:
    name = f'vocabulary of {size} pieces'
    watched = progress.track(texts(), description=name)
    model = train(watched, size=size)
  return own_vocabularies.write(
    prepared.name, prepared.data_dir, size=size, model=model
  )
