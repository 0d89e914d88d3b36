# SPDX-License-Identifier: Apache-2.0
"""A Gemma is exported for transformers; the other formats refuse it."""

import pytest

from dsbs_jax import contract
from dsbs_jax.exporting import (
  answer_check,
  ct2_gguf_folders,
  hf_folder,
  stablehlo,
)
from dsbs_jax.exporting import export as export_lib
from dsbs_jax.interop.hf import hf_checkpoint
from tests import models
from tests.core.gemma import recorded_gemma

pytest.importorskip('safetensors', reason='comes with the extra hf')


def _asked(recorded, tmp_path):
  return export_lib.ExportConfig(
    model_dir=str(recorded.folder), out=str(tmp_path / 'out')
  )


@recorded_gemma.both
def test_to_transformers_and_back(recorded, tmp_path):
  said = hf_folder.to_hugging_face(_asked(recorded, tmp_path))
  assert 'for Hugging Face' in said
  out = tmp_path / 'out'
  assert hf_checkpoint.config_from_hf(out) == recorded.config
  models.assert_equal(
    hf_checkpoint.load_params(out, recorded.config), recorded.params()
  )
  card = (out / 'README.md').read_text()
  name = 'T5Gemma 2' if recorded.config.has_encoder else 'Gemma 3'
  assert f'# {name} of' in card and f'- {recorded.config.family}' in card


@recorded_gemma.both
@pytest.mark.parametrize(
  'form', ['t5x', 'stablehlo', *ct2_gguf_folders.FORMATS]
)
def test_formats_of_a_t5_alone_are_refused(recorded, tmp_path, form):
  asked = _asked(recorded, tmp_path)
  with pytest.raises(contract.UserError, match=f'--format={form} writes a T5'):
    if form == 't5x':
      export_lib.to_t5x(asked)
    elif form == 'stablehlo':
      stablehlo.to_stablehlo(asked)
    else:
      ct2_gguf_folders.export(asked, form, check=answer_check.CheckConfig())
