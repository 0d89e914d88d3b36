# SPDX-License-Identifier: Apache-2.0
"""Exported students answer as infer does, and say where they come from."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from dsbs_jax import contract
from dsbs_jax.core import network
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.exporting import (
  checkpoint_facts,
  hf_folder,
  model_card,
  stablehlo,
)
from dsbs_jax.exporting import export as export_lib
from dsbs_jax.inference import infer_file
from dsbs_jax.interop import read_checkpoint
from dsbs_jax.runtime.configuration import gin_config
from tests.core import tiny_decoder
from tests.data import small_prepared
from tests.exporting import student
from tests.inference import small_student

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MODEL, TEXTS, HOSTILE = student.MODEL, student.TEXTS, student.HOSTILE
run_alone = student.run_alone


@pytest.fixture(scope='module')
def exported(run, tmp_path_factory):
  """The run as a StableHLO program."""
  out = tmp_path_factory.mktemp('exported') / 'stablehlo'
  stablehlo.to_stablehlo(
    export_lib.ExportConfig(model_dir=str(run), out=str(out), input_length=64)
  )
  return out


def input_ids(vocabulary, *, length):
  tokens = np.zeros((len(TEXTS), length), np.int32)
  pieces = vocabularies.load(vocabulary)
  for row, text in zip(tokens, TEXTS, strict=True):
    ids = [*pieces.encode(f'[label] {text}'), 1]
    row[: len(ids)] = ids
  return tokens


def greedy(params, tokens, length):
  decode = tiny_decoder.greedy(MODEL, length)
  return np.asarray(decode(params, {'encoder_input_tokens': tokens}))


def test_the_program_gives_the_same_tokens(exported, vocabulary, params):
  found = [json.loads(line) for line in run_alone(exported, '--tokens')]
  expected = greedy(params, input_ids(vocabulary, length=96), 9)
  np.testing.assert_array_equal(found, expected)
  assert len(set(map(tuple, found))) > 1  # the outputs differ by input


def test_the_program_answers_as_infer_does(exported, run, vocabulary, tmp_path):
  questions = [{'input': text} for text in TEXTS if text]
  (tmp_path / 'input').write_text(
    ''.join(json.dumps(question) + '\n' for question in questions)
  )
  sizes = dataclasses.asdict(MODEL)
  asked = gin_config.build(
    infer_file.InferConfig,
    gin_files=[
      'gin/infer.gin',
      'gin/models/nano.gin',
      'gin/benchmarks/svamp.gin',
    ],
    gin_bindings=[
      f"CHECKPOINT_PATH = '{run}'",
      f"INPUT = '{tmp_path / 'input'}'",
      f"OUTPUT = '{tmp_path / 'output'}'",
      f"VOCABULARY = '{vocabulary}'",
      'EVAL_BATCH_SIZE = 4',
      'MAX_DECODE_LEN = 9',
      *(
        f'{name.upper()} = {sizes[name]}'
        for name in (
          'vocab_size',
          'emb_dim',
          'num_heads',
          'head_dim',
          'mlp_dim',
          'num_encoder_layers',
          'num_decoder_layers',
        )
      ),
    ],
    search_paths=[str(REPOSITORY)],
  )
  assert infer_file.infer(asked) == 0
  lines = (tmp_path / 'output').read_text().splitlines()
  labels = [json.loads(line)['label'] for line in lines]
  answers = [
    answer
    for answer, text in zip(run_alone(exported), TEXTS, strict=True)
    if text
  ]
  assert answers == labels


def test_the_folder_holds_all_platforms_and_parameters(exported, params):
  settings = json.loads((exported / 'settings.json').read_text())
  assert settings['platforms'] == ['cpu', 'cuda', 'tpu']
  assert settings['prefix'] == '[label] '
  flat = safetensors.numpy.load_file(exported / 'params.safetensors')
  np.testing.assert_array_equal(
    flat['encoder/layers_1/mlp/wo/kernel'],
    params['encoder']['layers_1']['mlp']['wo']['kernel'],
  )
  assert len(flat) == len(jax.tree.leaves(params))


def test_scanned_layers_and_bytes_run_too(params, tmp_path):
  scanned = dataclasses.replace(MODEL, scan_layers=True)
  stacked = network.stack_layers(params, scanned)
  serving = {
    'prefix': '',
    'input_length': 8,
    'output_length': 3,
    'vocabulary': vocabularies.load('bytes'),
  }
  stablehlo.save(tmp_path / 'a', stacked, scanned, **serving)
  with pytest.raises(ValueError, match='is not empty'):
    stablehlo.save(tmp_path / 'a', stacked, scanned, **serving)
  program = jax.export.deserialize(
    bytearray((tmp_path / 'a' / 'model.stablehlo').read_bytes())
  )
  flat = safetensors.numpy.load_file(tmp_path / 'a' / 'params.safetensors')
  tokens = np.array([[5, 6, 1, 0, 0, 0, 0, 0]] * 3, np.int32)
  np.testing.assert_array_equal(
    program.call(flat, tokens), greedy(params, tokens, 3)
  )
  settings = json.loads((tmp_path / 'a' / 'settings.json').read_text())
  assert settings['vocabulary'] == 'bytes'
  with pytest.raises(ValueError, match='input_length is 0'):
    export_lib.ExportConfig(model_dir='x', out='y', input_length=0)


def test_the_card_says_what_the_files_say(exported, run):
  card = (exported / 'README.md').read_text()
  for said in (
    'distilling step-by-step (arXiv:2305.02301), the LLM',
    '| alpha (weight of the label term) | 0\\.25 |',
    '| 3 | best on validation | validation | accuracy | 55.50 |',
    '| 7 | exported | validation | accuracy | 44.25 |',
    '| 7 | exported | test | accuracy | 43.00 |',
    '| 9 | last | validation | accuracy | 33.00 |',
    'python run.py',
    '--gin_file=training.gin',
    'counts unknown',
    '| Teacher | unknown |',
    f'jax {jax.__version__}'.replace('.', '\\.'),
    checkpoint_facts.escape(
      'optimizer adamw_hf(beta1=0.9, weight_decay=0.1), '
    ),
  ):
    assert said in card, said
  written = (exported / 'training.gin').read_text()
  assert written == (run / 'config.gin').read_text()


def test_every_form_of_task_has_words_for_the_card():
  assert set(checkpoint_facts.METHODS) == set(contract.FORMS)


def test_the_card_counts_examples_that_are_still_there(
  run, teach, monkeypatch, tmp_path
):
  teach()
  facts = read_checkpoint.run_metadata(str(run / 'checkpoint_7'))
  data = checkpoint_facts.run_folder.prepared('svamp', None)
  data.metadata = {
    'teacher': 'palm',  # a default
    'fraction': 0.5,
    'splits': {
      'train': {'counts': {'models': {'large': 1000, HOSTILE: 234}}},
      'test': {'counts': {'accuracy': 61.0}},
    },
  }
  monkeypatch.setattr(data, 'fingerprint', lambda split: 'gone', raising=False)

  def write():
    model_card.write(
      tmp_path,
      checkpoint_facts.Checkpoint(run / 'checkpoint_7', 7, MODEL, facts),
      library='jax',
      usage='-',
    )
    return (tmp_path / 'README.md').read_text()

  card = write()
  assert 'train 1,234' in card and 'share of train: 0\\.5' in card
  assert 'its own accuracy on test 61.00 %' in card
  assert '| Teacher | large (1,000 completions), ' in card
  assert 'palm' not in card
  # Another teacher than train's.
  data.metadata['splits']['test']['counts']['models'] = {'small': 5}
  assert 'its own accuracy' not in write()


def test_nothing_of_the_data_becomes_markup(exported):
  card = (exported / 'README.md').read_text()
  assert '<script' not in card and '\u202e' not in card
  assert '\n# *not*' not in card and '\\[title\\]' in card
  assert checkpoint_facts.escape('a|b\n<c>`d`') == 'a\\|b &lt;c\\>\\`d\\`'


def test_a_foreign_checkpoint_has_a_card_that_knows_little(run, tmp_path):
  pytest.importorskip('tokenizers', reason='tokenizers is not installed')
  export = export_lib.ExportConfig(model_dir=str(run), out=str(tmp_path / 'hf'))
  assert 'data is not here to check' in hf_folder.to_hugging_face(export)
  assert 'max_new_tokens=9' in (tmp_path / 'hf' / 'README.md').read_text()
  # Of others: neither our files nor a tokenizer.
  for name in ('run.json', 'training.gin', 'spiece.model', 'tokenizer.json'):
    (tmp_path / 'hf' / name).unlink()
  (tmp_path / 'hf' / 'tokenizer_config.json').unlink()
  again = export_lib.ExportConfig(
    model_dir=str(tmp_path / 'hf'), out=str(tmp_path / 't5x')
  )
  export_lib.to_t5x(again)
  card = (tmp_path / 't5x' / 'README.md').read_text()
  assert '| Method | unknown |' in card and 'no metrics beside' in card
  with pytest.raises(ValueError, match='Give --vocabulary'):
    stablehlo.to_stablehlo(
      export_lib.ExportConfig(
        model_dir=str(tmp_path / 'hf'), out=str(tmp_path / 'x')
      )
    )


def test_transformers_loads_the_folder_and_answers_alike(
  run, vocabulary, params, tmp_path
):
  transformers = pytest.importorskip(
    'transformers', reason='transformers is not installed'
  )
  pytest.importorskip('torch', reason='torch is not installed')
  export = export_lib.ExportConfig(model_dir=str(run), out=str(tmp_path / 'hf'))
  hf_folder.to_hugging_face(export)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / 'hf')
  tokens = input_ids(vocabulary, length=64)
  batch = tokenizer(
    [f'[label] {text}' for text in TEXTS],
    return_tensors='pt',
    padding='max_length',
    max_length=64,
  )
  np.testing.assert_array_equal(batch['input_ids'].numpy(), tokens)
  outputs = model.eval().generate(**batch).numpy()[:, 1:]
  expected = greedy(params, tokens, 9)
  np.testing.assert_array_equal(outputs, expected[:, : outputs.shape[1]])
  assert not expected[:, outputs.shape[1] :].any()
  pieces = vocabularies.load(vocabulary)
  assert tokenizer.batch_decode(outputs, skip_special_tokens=True) == [
    pieces.decode(row) for row in expected.tolist()
  ]


def test_programs_refuse_a_tokenizer_json(run, tmp_path):
  pytest.importorskip('tokenizers', reason='tokenizers is not installed')
  export = export_lib.ExportConfig(model_dir=str(run), out=str(tmp_path / 'hf'))
  hf_folder.to_hugging_face(export)
  export = export_lib.ExportConfig(
    model_dir=str(tmp_path / 'hf'),
    out=str(tmp_path / 'out'),
    vocabulary=str(tmp_path / 'hf' / 'tokenizer.json'),
  )
  with pytest.raises(ValueError, match='is a tokenizer.json, expected'):
    stablehlo.to_stablehlo(export)
  again = dataclasses.replace(export, vocabulary=str(tmp_path / 'hf'))
  assert 'with its tokenizer' in hf_folder.to_hugging_face(again)
  copies = [tmp_path / name / 'spiece.model' for name in ('hf', 'out')]
  assert copies[0].read_bytes() == copies[1].read_bytes()


def test_an_exported_tokenizer_is_checked_on_the_runs_data(tmp_path):
  pytest.importorskip('tokenizers', reason='tokenizers is not installed')
  data = small_prepared.write(tmp_path / 'data', splits=('train',))
  run = tmp_path / 'run'
  metadata = {
    'model': dataclasses.asdict(small_student.MODEL),
    'task': 'cqa_gt_dsbs',
    'data': data.fingerprint('train'),
  }
  small_student.write(run, metadata)
  (run / 'config.gin').write_text(
    f"VOCABULARY = 'bytes'\nDATA_DIR = '{tmp_path / 'data'}'\n"
  )
  export = export_lib.ExportConfig(model_dir=str(run), out=str(tmp_path / 'hf'))
  said = 'Of 135 texts of its training data, 0 get other ids'
  assert said in hf_folder.to_hugging_face(export)
  card = (tmp_path / 'hf' / 'README.md').read_text()
  assert said in card and 'max_new_tokens=64' in card
