# SPDX-License-Identifier: Apache-2.0
"""Folders for inference engines of others: CTranslate2, llama.cpp.

Beside the engine's own files lie the vocabulary, `settings.json` (what stands
before inputs, lengths, ids), `run.py`, which needs nothing of this project, and
the model card. After writing, `answer_check` compares the folder's answers with
the student's own.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.data.remote import buckets
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.exporting import answer_check, model_card
from dsbs_jax.exporting import export as export_lib
from dsbs_jax.interop import ct2_model, gguf_model
from dsbs_jax.interop.hf import hf_checkpoint, hf_tokenizer

DROPPED_STATUS = 1

_USE = """\
```sh
pip install {packages}
echo 'your input' | python run.py
```

`run.py` shows all of it in a page. {prefix} stands before every input,
decoding is greedy, and outputs have at most {length} tokens (`settings.json`).
{more}
"""


@dataclasses.dataclass(frozen=True)
class Format:
  """One engine's folders.

  Attributes:
    library: its name in the model card.
    package: what `run.py` needs beside a reader of the vocabulary.
    quantizations: how weights can be stored; the first is the default.
    write: writes the engine's files: (folder, params, config, *, vocabulary,
      quantization).
    more: Markdown for the model card.
  """

  library: str
  package: str
  quantizations: tuple[str, ...]
  write: Callable[..., None]
  more: str


def _write_ct2(
  folder: pathlib.Path,
  params: Any,
  config: network.T5Config,
  *,
  vocabulary: vocabularies.Vocabulary,
  quantization: str,
) -> None:
  """A T5 for CTranslate2, whose tokens are the vocabulary's pieces."""
  tokens = [vocabulary.piece(i) for i in range(vocabulary.size)]
  tokens += [f'<unused_{i}>' for i in range(len(tokens), config.vocab_size)]
  ct2_model.save(
    folder, params, config, tokens=tokens, quantization=quantization
  )


FORMATS: Mapping[str, Format] = {
  'ct2': Format(
    library='ctranslate2',
    package='ctranslate2',
    quantizations=ct2_model.QUANTIZATIONS,
    write=_write_ct2,
    more='CTranslate2 takes tokens as texts: those of the ids that the'
    ' vocabulary gives, by their place in `shared_vocabulary.json`, with `</s>`'
    ' at the end.',
  ),
  'gguf': Format(
    library='gguf',
    package='llama-cpp-python',
    quantizations=gguf_model.QUANTIZATIONS,
    write=lambda folder, *model, **options: gguf_model.save(
      folder / 'model.gguf', *model, **options
    ),
    more='`model.gguf` holds the vocabulary, too. It needs a program that calls'
    ' `llama_encode` before `llama_decode`, as `run.py` does: the server of'
    ' llama.cpp (seen in xllamacpp 2026.10) loads it, leaves the encoder out,'
    ' and answers nonsense.',
  ),
}


def export(
  asked: export_lib.ExportConfig,
  form: str,
  *,
  quantization: str | None = None,
  check: answer_check.CheckConfig,
) -> int:
  """Writes the folder, answers with it, prints what came out.

  Args:
    form: one of FORMATS.
    quantization: one of the format's; None takes its first.

  Returns:
    The exit status: 1 where accuracy drops by more than `check.max_drop`. The
    folder stays, to be looked into; its model card says so, too.

  Raises:
    UserError: no vocabulary is known, the folder is in use, or the engine
      cannot compute the network.
  """
  target = FORMATS[form]
  quantization = quantization or target.quantizations[0]
  if quantization not in target.quantizations:
    raise contract.UserError(
      f'--quantization is {quantization!r}, expected one of'
      f' {target.quantizations} for --format={form}.'
    )
  folder = hf_checkpoint.check_new(asked.out)
  found, params = export_lib.open_checkpoint(asked)
  export_lib.check_t5(found, form)
  vocabulary = export_lib.require_vocabulary(asked, found)
  folder.mkdir(parents=True, exist_ok=True)
  options = {'vocabulary': vocabulary, 'quantization': quantization}
  target.write(folder, params, found.config, **options)
  settings = write_settings(
    folder,
    vocabulary,
    prefix=found.prefix,
    output_length=asked.output_length or found.max_decode_len,
    quantization=quantization,
  )
  export_lib.write_run_script(folder, form)
  text, dropped = answer_check.check(folder, found, params, vocabulary, check)
  more = f'Weights: {quantization}. {target.more} {text}'
  model_card.write(
    folder,
    found,
    library=target.library,
    usage=usage(target.package, settings, more),
  )
  said = f'{folder}: {found.path} for {target.library}, {quantization}'
  print(buckets.shown(said))
  print(text)
  return DROPPED_STATUS if dropped else 0


def usage(package: str, settings: Mapping[str, Any], more: str) -> str:
  """How the model card says that the folder is used."""
  reader = settings['vocabulary'].partition('.')[2]
  readers = {'model': ' sentencepiece', 'json': ' tokenizers'}
  return _USE.format(
    packages=package + readers.get(reader, ''),
    prefix=repr(settings['prefix']),
    length=settings['output_length'],
    more=more,
  )


def write_settings(
  folder: pathlib.Path, vocabulary: vocabularies.Vocabulary, **facts: Any
) -> dict[str, Any]:
  """Writes the vocabulary and what `run.py` must know; gives the latter."""
  name, content = 'bytes', None
  if isinstance(vocabulary, vocabularies.SentencePieceVocabulary):
    name, content = 'spiece.model', vocabulary.model_with_extra_ids
  elif isinstance(vocabulary, vocabularies.JsonVocabulary):
    name = 'tokenizer.json'
    content = hf_tokenizer.tokenizer_files(vocabulary)[name]
  if content is not None:
    (folder / name).write_bytes(content)
  settings = {
    **facts,
    'pad_id': contract.PAD_ID,
    'eos_id': contract.EOS_ID,
    'unk_id': vocabulary.unk,
    'num_text_ids': vocabulary.num_text_ids,
    'vocabulary': name,
  }
  text = json.dumps(settings, indent=2) + '\n'
  (folder / 'settings.json').write_text(text)
  return settings
