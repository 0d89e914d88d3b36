# SPDX-License-Identifier: Apache-2.0
"""Folders for other engines answer as the student, and are checked by that."""

import dataclasses
import importlib
import io
import json
import sys
import types

import numpy as np
import pytest

from dsbs_jax.data.prepared import dataset_writer, store
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.exporting import answer_check, checkpoint_facts, ct2_gguf_folders
from dsbs_jax.exporting import export as export_lib
from dsbs_jax.interop import gguf_model
from dsbs_jax.interop.hf import hf_checkpoint
from tests import models
from tests.claims import doors
from tests.data import small_prepared
from tests.exporting import student
from tests.exporting.test_exported import greedy, input_ids
from tests.inference import small_student

NEEDS = {'ct2': ('ctranslate2',), 'gguf': ('gguf', 'llama_cpp')}


@pytest.fixture(params=NEEDS)
def form(request):
  for package in NEEDS[request.param]:
    pytest.importorskip(package, reason=f'for --format={request.param}')
  return request.param


def export(model_dir, out, form, *, check=None, **options):
  """Exports; gives the exit status and the text of what was asked."""
  asked = export_lib.ExportConfig(model_dir=str(model_dir), out=str(out))
  return ct2_gguf_folders.export(
    asked,
    form,
    check=check or answer_check.CheckConfig(source='none'),
    **options,
  )


def test_the_folder_answers_alone_as_the_student(
  form, run, vocabulary, params, tmp_path
):
  assert export(run, tmp_path / 'out', form) == 0
  found = student.run_alone(tmp_path / 'out', '--tokens')
  expected = greedy(params, input_ids(vocabulary, length=96), 9)
  for line, ids in zip(found, expected, strict=True):
    assert json.loads(line) == np.trim_zeros(ids, 'b').tolist()
  texts = student.run_alone(tmp_path / 'out')
  pieces = vocabularies.load(vocabulary)
  assert texts == [pieces.decode(ids) for ids in expected]
  assert len(set(texts)) > 1
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert 'not checked' in card and "'[label] ' stands before" in card
  assert (tmp_path / 'out' / 'training.gin').is_file()
  with pytest.raises(ValueError, match='is not empty'):
    export(run, tmp_path / 'out', form)


@pytest.fixture
def questions(tmp_path, run):
  """A file of questions, labelled as the student answers but for one of them."""
  pytest.importorskip('ctranslate2', reason='extra ct2')
  asked = student.run_alone
  export(run, tmp_path / 'first', 'ct2')
  labels = asked(tmp_path / 'first')
  labels[1] = 'another'
  lines = [
    {'input': text, 'label': label}
    for text, label in zip(student.TEXTS, labels, strict=True)
  ]
  file = tmp_path / 'questions.jsonl'
  file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return file


def test_what_came_out_is_printed(form, run, questions, tmp_path, capsys):
  check = answer_check.CheckConfig(source=str(questions))
  assert export(run, tmp_path / 'out', form, check=check) == 0
  said = capsys.readouterr().out
  assert (
    'Of 5 examples of questions.jsonl, it answers 100.00 % as the student does;'
    ' accuracy 80.00 %, the student 80.00 %.' in said
  )
  assert '100.00 % as the' in (tmp_path / 'out' / 'README.md').read_text()


def test_a_drop_is_status_1_and_the_folder_stays(
  run, questions, tmp_path, monkeypatch, capsys
):
  """Stands for a quantization that costs too much: other parameters."""
  real = ct2_gguf_folders.ct2_model.save

  def louder(folder, params, config, **options):
    changed = models.jit(
      lambda tree: {
        **tree,
        'encoder': {
          **tree['encoder'],
          'encoder_norm': {'scale': -tree['encoder']['encoder_norm']['scale']},
        },
      }
    )(params)
    real(folder, changed, config, **options)

  monkeypatch.setattr(ct2_gguf_folders.ct2_model, 'save', louder)
  status = export(
    run,
    tmp_path / 'out',
    'ct2',
    check=answer_check.CheckConfig(source=str(questions), max_drop=10),
  )
  assert status == ct2_gguf_folders.DROPPED_STATUS
  said = capsys.readouterr().out
  assert 'more than the 10 allowed' in said
  assert 'more than the 10' in (tmp_path / 'out' / 'README.md').read_text()
  unlabelled = questions.read_text().replace('"label"', '"other"')
  questions.write_text(unlabelled)
  status = export(
    run,
    tmp_path / 'again',
    'ct2',
    check=answer_check.CheckConfig(source=str(questions), max_drop=100),
  )
  assert status == 0  # where labels are not known, equal answers count
  assert 'accuracy' not in capsys.readouterr().out


def test_bytes_and_files_of_tokenizers_are_read_too(tmp_path):
  pytest.importorskip('ctranslate2', reason='extra ct2')
  config, params = small_student.MODEL, small_student.params()
  hf_checkpoint.save_hf(tmp_path / 'hf', params, config)
  for name, spec in (
    ('bytes', 'bytes'),
    ('json', str(student_tokenizer(tmp_path))),
  ):
    asked = export_lib.ExportConfig(
      model_dir=str(tmp_path / 'hf'),
      out=str(tmp_path / name),
      vocabulary=spec,
      output_length=5,
    )
    check = answer_check.CheckConfig(source='none')
    assert ct2_gguf_folders.export(asked, 'ct2', check=check) == 0
    vocabulary = vocabularies.load(spec)
    run = answer_check.load_program(tmp_path / name / 'run.py')
    loaded = run.Student(tmp_path / name, threads=1)
    for text in ('two words', 'ﬁne</s> 🙂', ''):
      assert loaded.encode(text) == [*vocabulary.encode(text), 1]
      (ids,) = loaded.generate([text])
      assert len(ids) <= 5
      assert loaded.decode(ids) == vocabulary.decode(ids)


def student_tokenizer(folder):
  """A tokenizer.json of bytes, as transformers saves it after a training."""
  import tokenizers

  from dsbs_jax.interop.hf import hf_tokenizer

  content = hf_tokenizer.tokenizer_files(small_student.BYTES)['tokenizer.json']
  tokenizer = tokenizers.Tokenizer.from_str(content.decode())
  tokenizer.enable_truncation(4)
  tokenizer.enable_padding(length=4)
  tokenizer.save(str(folder / 'tokenizer.json'))
  vocabulary = vocabularies.load(str(folder / 'tokenizer.json'))
  files = hf_tokenizer.tokenizer_files(vocabulary)
  assert (
    hf_tokenizer.count_differences(files, vocabulary, ['a', 'long'] * 9) == 0
  )
  return folder / 'tokenizer.json'


def test_a_folder_that_reads_inputs_otherwise_is_found(
  run, questions, tmp_path, monkeypatch, capsys
):
  load = answer_check.load_program

  def cutting(path):
    program = load(path)
    encode = program.Student.encode
    program.Student.encode = lambda self, text: encode(self, text[:1])
    return program

  monkeypatch.setattr(answer_check, 'load_program', cutting)
  check = answer_check.CheckConfig(source=str(questions))
  status = export(run, tmp_path / 'out', 'ct2', check=check)
  assert status == ct2_gguf_folders.DROPPED_STATUS
  assert 'the student 80.00 %' in capsys.readouterr().out


def test_labels_are_compared_as_the_vocabulary_writes_them(
  vocabulary, tmp_path, monkeypatch
):
  """As eval scores them: what no student can write is no error of this one."""
  example = dataclasses.replace(
    small_prepared.examples('test', number=1)[0], gt_label='the ﬁx\u00a0dog'
  )
  splits = {'train': [example], 'test': [example]}
  dataset_writer.write('cqa', splits, data_dir=tmp_path, about={})
  (tmp_path / 'config.gin').write_text(f'DATA_DIR = {str(tmp_path)!r}\n')
  (tmp_path / 'settings.json').write_text('{"output_length": 3}')
  found = checkpoint_facts.Checkpoint(
    tmp_path / 'checkpoint_7',
    7,
    student.MODEL,
    {
      'task': 'cqa_gt_finetune',
      'data': store.read('cqa', str(tmp_path)).fingerprint('train'),
    },
  )
  pieces = vocabularies.load(vocabulary)
  ids = [*pieces.encode('the fix dog'), 1]

  class Program:
    def Student(self, folder):
      return self

    def generate(self, texts):
      return [ids] * len(texts)

  monkeypatch.setattr(answer_check, 'load_program', lambda path: Program())
  monkeypatch.setattr(answer_check, '_greedy', lambda *_, **__: [ids])
  text, _ = answer_check.check(
    tmp_path, found, {}, pieces, answer_check.CheckConfig()
  )
  assert 'accuracy 100.00 %, the student 100.00 %' in text


@pytest.mark.parametrize('script', ['ct2', 'gguf', 'stablehlo'])
def test_each_line_of_bytes_gets_a_line(script, monkeypatch, capsys):
  """As infer reads them: no mark at the start, no end but a line feed."""
  for package in NEEDS.get(script, ()):  # not called here
    monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
  module = importlib.import_module(f'dsbs_jax.exporting.run_scripts.{script}')
  asked = []

  class Student:
    def __init__(self, *_):
      pass

    def generate(self, texts):
      asked.extend(texts)
      return [[0]] * len(texts)

    def decode(self, ids):
      return 'two\nlines'

    def answer(self, texts):
      return [self.decode(ids) for ids in self.generate(texts)]

  content = b'\xef\xbb\xbfa\xc3\xa9\r\nb\rc\n\nlast\td'
  stdin = io.TextIOWrapper(io.BytesIO(content), encoding='latin-1')
  monkeypatch.setattr('sys.stdin', stdin)
  monkeypatch.setattr('sys.argv', ['run.py'])
  monkeypatch.setattr(module, 'Student', Student)
  module.main()
  assert asked == ['a\u00e9', 'b\rc', '', 'last\td']
  assert capsys.readouterr().out == 'two lines\n' * 4


def test_the_command_has_the_flags(run, questions, tmp_path):
  ended = doors.call(
    'dsbs_jax.export',
    str(run),
    '--format=ct2',
    '--quantization=int8',
    f'--check={questions}',
    '--max_drop=100',
    f'--out={tmp_path / "int8"}',
  )
  assert ended.status == 0 and 'for ctranslate2, int8' in ended.stdout
  ended = doors.call(
    'dsbs_jax.export',
    str(run),
    '--format=gguf',
    '--quantization=int8',
    f'--out={tmp_path / "gguf"}',
  )
  assert ended.status == 2
  assert "expected one of ('float32', 'float16', 'q8_0')" in ended.stderr
  ended = doors.call('dsbs_jax.export', str(run), '--quantization=int8')
  assert ended.status == 2 and '--format=hf has no such' in ended.stderr


def test_what_llama_cpp_does_not_know_is_refused(tmp_path):
  config = models.t5(vocab_size=384)
  for changed, vocabulary, words in (
    (config, 'bytes', 'no SentencePiece unigram'),
    (models.t5(max_distance=64), 'bytes', 'max_distance'),
    (models.t5(num_decoder_layers=2), 'bytes', 'decoder has 2 layers'),
    (models.t5(mlp_activations=('silu', 'linear')), 'bytes', 'silu'),
  ):
    with pytest.raises(ValueError, match=f'{words}.*--format=ct2'):
      gguf_model.check(changed, vocabularies.load(vocabulary))


@pytest.mark.parametrize(
  'line', ['text', '["input"]', '{"label": "x"}', '{"input": null}']
)
def test_a_file_of_something_else_is_refused(tmp_path, line):
  (tmp_path / 'file').write_text(line)
  with pytest.raises(ValueError, match='file:1 is not a question'):
    answer_check.read_questions(tmp_path / 'file', 3)


def test_blank_lines_and_a_mark_at_the_start_are_no_questions(tmp_path):
  (tmp_path / 'file').write_bytes(
    b'\xef\xbb\xbf{"input": "a"}\n\n{"input": 2}\n '
  )
  assert answer_check.read_questions(tmp_path / 'file', 9).inputs == ['a', '2']


def test_a_label_may_be_a_number(tmp_path):
  (tmp_path / 'file').write_text('{"input": "1 + 1", "label": 2}')
  assert answer_check.read_questions(tmp_path / 'file', 3).labels == ['2']
