# SPDX-License-Identifier: Apache-2.0
"""Exports a student to a folder for Hugging Face's transformers."""

import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from dsbs_jax.core import network
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.exporting import checkpoint_facts, model_card
from dsbs_jax.exporting import export as export_lib
from dsbs_jax.interop.hf import hf_checkpoint, hf_layout, hf_tokenizer
from dsbs_jax.runs import run_folder, run_metadata

_HUGGING_FACE_USE = """\
```python
import transformers

tokenizer = transformers.AutoTokenizer.from_pretrained('.')
model = transformers.{loader}.from_pretrained('.')
batch = tokenizer([{text}], return_tensors='pt', padding=True)
outputs = model.generate(**batch, max_new_tokens={length})
print(tokenizer.batch_decode({outputs}, skip_special_tokens=True))
```

{around}; decoding is greedy. {checked}
"""
_WITHOUT_TOKENIZER_USE = """\
```python
import transformers

model = transformers.AutoModelForSeq2SeqLM.from_pretrained('.')
```

There is no tokenizer in this folder: which vocabulary the model was trained
with is not known.
"""
_NUM_CHECKED_ROWS = 200


def to_hugging_face(export: export_lib.ExportConfig) -> str:
  """Writes a folder for transformers; returns a sentence that says so."""
  found, params = export_lib.open_checkpoint(export)
  vocabulary = export_lib.find_vocabulary(export, found)
  macros = run_metadata.macros(found.path)
  generation, theirs = {}, found.path / 'generation_config.json'
  if theirs.is_file():
    generation = hf_layout.read_json(theirs)
  elif 'MAX_DECODE_LEN' in macros:
    generation = {'max_new_tokens': macros['MAX_DECODE_LEN']}
  usage, files, said = _WITHOUT_TOKENIZER_USE, {}, 'without a tokenizer'
  if vocabulary is not None:
    files = hf_tokenizer.tokenizer_files(vocabulary)
    checked = _check_tokenizer(files, vocabulary, _texts(found, macros))
    length = generation.get('max_new_tokens', 64)
    usage = _usage(found, vocabulary, length=length, checked=checked)
    said = f'with its tokenizer. {checked}'
  hf_checkpoint.save_hf(
    export.out, params, found.config, tokenizer=files, generation=generation
  )
  if found.metadata:
    text = json.dumps(found.metadata, indent=2) + '\n'
    file = pathlib.Path(export.out) / run_metadata.METADATA_FILE
    file.write_text(text, encoding='utf-8')
  model_card.write(export.out, found, library='transformers', usage=usage)
  return f'{export.out}: {found.path} for Hugging Face, {said}'


def _check_tokenizer(
  files: Mapping[str, bytes],
  vocabulary: vocabularies.Vocabulary,
  texts: Iterator[str],
) -> str:
  """Compares the tokenizer's ids of texts with training's; says the result."""
  if 'tokenizer.json' not in files or vocabulary.input_end_text:
    texts = ()
  texts = list(texts)
  if not texts:
    return 'Its training data is not here to check this tokenizer on.'
  other = hf_tokenizer.count_differences(files, vocabulary, texts)
  return (
    f'Of {len(texts)} texts of its training data, {other} get other ids from'
    ' this tokenizer than they had in training.'
  )


def _usage(
  found: checkpoint_facts.Checkpoint,
  vocabulary: vocabularies.Vocabulary,
  *,
  length: int,
  checked: str,
) -> str:
  """How the model card says that the folder is used."""
  prefix = vocabulary.input_start_text + found.prefix
  end = vocabulary.input_end_text
  config = found.config
  is_decoder = (
    isinstance(config, network.GemmaConfig) and not config.has_encoder
  )
  loader, outputs = 'AutoModelForSeq2SeqLM', 'outputs'
  if is_decoder:  # it gives its inputs back, too
    loader = 'AutoModelForCausalLM'
    outputs = "outputs[:, batch['input_ids'].shape[1]:]"
  return _HUGGING_FACE_USE.format(
    loader=loader,
    outputs=outputs,
    text=f"{prefix!r} + 'your input'" + (f' + {end!r}' if end else ''),
    around=f'{prefix!r} stands before every input'
    + (f', {end!r} behind it' if end else ''),
    length=length,
    checked=checked,
  )


def _texts(
  found: checkpoint_facts.Checkpoint, macros: Mapping[str, Any]
) -> Iterator[str]:
  """Some texts that the run trained on, where its data is still there."""
  data = checkpoint_facts.prepared_data(found, macros)
  if data is not None:
    rows = data.examples(run_folder.TRAIN, chunk=_NUM_CHECKED_ROWS)
    for row in itertools.islice(rows, _NUM_CHECKED_ROWS):
      yield found.prefix + row.input
      yield from (row.gt_label, row.rationale)
