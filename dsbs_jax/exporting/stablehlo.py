# SPDX-License-Identifier: Apache-2.0
"""A student as one StableHLO program, for machines without this project.

A folder holds

  model.stablehlo      greedy decoding by jax.export: (parameters,
                       encoder_input_tokens [B, S] int32) -> tokens [B, L]
                       int32; B is free, S and L are fixed
  params.safetensors   the parameters by their paths in the tree, layers
                       unrolled: encoder/layers_0/mlp/wo/kernel
  spiece.model         the vocabulary, its extra ids included
  settings.json        what stands before inputs, S, L, and more facts
  run.py               reads all of this; needs jax, numpy, safetensors and
                       sentencepiece
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.export
import numpy as np
import safetensors.numpy
from flax import traverse_util

from dsbs_jax import contract
from dsbs_jax.core import decoding, network
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.exporting import ct2_gguf_folders, export, model_card
from dsbs_jax.interop import t5x_layers
from dsbs_jax.interop.hf import hf_checkpoint

PLATFORMS = ('cpu', 'cuda', 'tpu')

_MORE = """\
`model.stablehlo` takes ids to greedy outputs by `jax.export.deserialize` on
CPU, CUDA or TPU. JAX keeps such programs readable for six months;
`settings.json` says which version wrote this one.
"""


def to_stablehlo(asked: export.ExportConfig) -> str:
  """Writes a folder that runs by `jax.export`; returns a sentence about it.

  Raises:
    UserError: no vocabulary is known, or the folder is in use.
  """
  found, params = export.open_checkpoint(asked)
  export.check_t5(found, 'stablehlo')
  vocabulary = export.require_vocabulary(asked, found)
  if isinstance(vocabulary, vocabularies.JsonVocabulary):
    raise contract.UserError(
      f'{asked.vocabulary or asked.model_dir} is a tokenizer.json, expected a'
      ' SentencePiece file or bytes, which a program can read alone. Give'
      ' --vocabulary, or --format=hf.'
    )
  settings = save(
    asked.out,
    params,
    found.config,
    prefix=found.prefix,
    input_length=asked.input_length,
    output_length=asked.output_length or found.max_decode_len,
    vocabulary=vocabulary,
  )
  usage = ct2_gguf_folders.usage('jax numpy safetensors', settings, _MORE)
  model_card.write(asked.out, found, library='jax', usage=usage)
  return f'{asked.out}: {found.path} for jax.export; try {asked.out}/run.py'


def _program(
  config: network.Config, *, input_length: int, output_length: int
) -> jax.export.Exported:
  """(parameters by path, [B, S] int32) -> [B, L] int32, B symbolic."""
  plain = dataclasses.replace(config, scan_layers=False)
  shapes = traverse_util.flatten_dict(network.param_shapes(plain), sep='/')

  def generate(flat, tokens):
    params = traverse_util.unflatten_dict(flat, sep='/')
    rows = {'encoder_input_tokens': tokens}
    return decoding.greedy(params, plain, rows, max_decode_len=output_length)

  (rows,) = jax.export.symbolic_shape('rows')
  tokens = jax.ShapeDtypeStruct((rows, input_length), np.int32)
  return jax.export.export(jax.jit(generate), platforms=PLATFORMS)(
    shapes, tokens
  )


def save(
  folder: str | pathlib.Path,
  params: Any,
  config: network.Config,
  *,
  prefix: str,
  input_length: int,
  output_length: int,
  vocabulary: vocabularies.Vocabulary,
) -> dict[str, Any]:
  """Writes the folder; gives its settings.

  Args:
    params: the parameter tree, in either layout of the layers.
    prefix: text that stands before every input.
    input_length: S, tokens of an input at most, prefix and end included.
    output_length: L, tokens of an output at most, end included.
    vocabulary: of SentencePiece or bytes.
  """
  folder = hf_checkpoint.check_new(folder)
  program = _program(
    config, input_length=input_length, output_length=output_length
  )
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'model.stablehlo').write_bytes(program.serialize())
  plain = t5x_layers.unrolled_params(params, config)
  safetensors.numpy.save_file(
    traverse_util.flatten_dict(plain, sep='/'), folder / 'params.safetensors'
  )
  export.write_run_script(folder, 'stablehlo')
  return ct2_gguf_folders.write_settings(
    folder,
    vocabulary,
    prefix=prefix,
    input_length=input_length,
    output_length=output_length,
    platforms=program.platforms,
    jax=jax.__version__,
    calling_convention_version=program.calling_convention_version,
  )
