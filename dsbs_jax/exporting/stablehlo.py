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
import json
import pathlib
from typing import Any

import jax
import jax.export
import numpy as np
import safetensors.numpy
from flax import traverse_util

from dsbs_jax import contract
from dsbs_jax.core import decoding, network
from dsbs_jax.exporting.run_scripts import stablehlo as run_script
from dsbs_jax.interop import t5x_layers
from dsbs_jax.interop.hf import hf_checkpoint

PLATFORMS = ('cpu', 'cuda', 'tpu')


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
  sentencepiece_model: bytes | None = None,
  num_text_ids: int | None = None,
) -> None:
  """Writes the folder.

  Args:
    folder: does not exist yet, or is empty.
    params: the parameter tree, in either layout of the layers.
    config: its size.
    prefix: text that stands before every input.
    input_length: S, tokens of an input at most, prefix and end included.
    output_length: L, tokens of an output at most, end included.
    sentencepiece_model: the vocabulary with its extra ids; None where texts
      are read as UTF-8 bytes, ids 3 to 258.
    num_text_ids: its ids without the extra ones.

  Raises:
    UserError: the folder is in use.
  """
  folder = hf_checkpoint.check_new(folder)
  program = _program(
    config, input_length=input_length, output_length=output_length
  )
  settings = {
    'prefix': prefix,
    'input_length': input_length,
    'output_length': output_length,
    'pad_id': contract.PAD_ID,
    'eos_id': contract.EOS_ID,
    'num_text_ids': num_text_ids,
    'vocabulary': 'spiece.model' if sentencepiece_model else 'bytes',
    'platforms': list(program.platforms),
    'jax': jax.__version__,
    'calling_convention_version': program.calling_convention_version,
  }
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'model.stablehlo').write_bytes(program.serialize())
  plain = t5x_layers.unrolled_params(params, config)
  safetensors.numpy.save_file(
    traverse_util.flatten_dict(plain, sep='/'), folder / 'params.safetensors'
  )
  if sentencepiece_model:
    (folder / 'spiece.model').write_bytes(sentencepiece_model)
  (folder / 'settings.json').write_text(json.dumps(settings, indent=2) + '\n')
  source = pathlib.Path(run_script.__file__).read_text()
  (folder / 'run.py').write_text(source)
