# SPDX-License-Identifier: Apache-2.0
"""Training a SentencePiece vocabulary on a benchmark's own texts."""

import io
from collections.abc import Iterable

import sentencepiece

from dsbs_jax import contract
from dsbs_jax.data import task_forms, vocabularies

_MAX_TEXTS = 500_000  # the first ones; more change a vocabulary little
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

  Returns:
    The model file's contents.

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
