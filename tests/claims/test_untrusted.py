# SPDX-License-Identifier: Apache-2.0
"""What comes from others is never run, unpacked elsewhere or obeyed."""

import ast
import pathlib
import struct
import zipfile

import pytest

from dsbs_jax.data.source import archive, json_reader
from dsbs_jax.experiments import rationale_predictions
from dsbs_jax.interop.hf import hf_weights
from dsbs_jax.runtime import terminal_text
from tests.data import toy

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SOURCES = sorted(
  path
  for folder in ('dsbs_jax', 'rationales', 'tasks', 'bench', 'examples')
  for path in (REPOSITORY / folder).rglob('*.py')
)
RUNNERS = {'eval', 'exec', 'compile', '__import__'}
PICKLERS = {
  'pickle',
  'cPickle',
  'cloudpickle',
  'dill',
  'joblib',
  'marshal',
  'shelve',
}


def _calls(path):
  """(dotted name, keywords) of every call in a file, re.compile left out."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call):
      yield (
        ast.unparse(node.func),
        {word.arg: ast.unparse(word.value) for word in node.keywords},
      )


def _imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from ((alias.name, None) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from ((node.module or '', alias.name) for alias in node.names)


def test_no_text_is_ever_run():
  assert len(SOURCES) > 80
  for path in SOURCES:
    found = {name for name, _ in _calls(path)} & RUNNERS
    assert not found, (path, found)


def test_no_pickle_is_ever_loaded():
  for path in SOURCES:
    for module, name in _imports(path):
      if module.split('.')[0] in PICKLERS:
        # The error that torch's weights-only loader raises, and nothing else.
        assert (module, name) == ('pickle', 'UnpicklingError'), path
    for name, keywords in _calls(path):
      last = name.rpartition('.')[2]
      if name in ('np.load', 'numpy.load'):
        assert keywords.get('allow_pickle') == 'False', (path, name)
      if name == 'torch.load':
        assert keywords.get('weights_only') == 'True', (path, name)
      assert last not in ('Unpickler', 'read_pickle'), (path, name)


def test_weights_that_would_run_something_are_refused(tmp_path):
  torch = pytest.importorskip('torch', reason='torch is not installed')
  marker = tmp_path / 'ran'

  class Hostile:
    def __reduce__(self):
      return (pathlib.Path.touch, (marker,))

  torch.save({'a': Hostile()}, tmp_path / 'pytorch_model.bin')
  with pytest.raises(ValueError, match='weights-only loader'):
    hf_weights.open_folder(tmp_path, allow_pickle=True)
  with pytest.raises(ValueError, match='ALLOW_PICKLE=True'):
    hf_weights.open_folder(tmp_path, allow_pickle=False)
  assert not marker.exists()


@pytest.mark.parametrize(
  'header',
  [
    b'\xff' * 8,
    struct.pack('<Q', 2) + b'{}',
    struct.pack('<Q', 4) + b'[12]',
    struct.pack('<Q', 1 << 40) + b'{}',
    struct.pack('<Q', 60)
    + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'.ljust(60),
    struct.pack('<Q', 60)
    + b'{"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}'.ljust(60),
    struct.pack('<Q', 64)
    + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}'.ljust(64),
  ],
)
def test_safetensors_that_lie_are_refused(tmp_path, header):
  (tmp_path / 'model.safetensors').write_bytes(header + b'\0' * 4)
  with pytest.raises(ValueError, match='complete safetensors|dtype I8'):
    hf_weights.open_folder(tmp_path, allow_pickle=False)


def test_shards_outside_the_folder_are_refused(tmp_path):
  index = '{"weight_map": {"a": "../other/model.safetensors"}}'
  (tmp_path / 'model.safetensors.index.json').write_text(index)
  with pytest.raises(ValueError, match='file of its own folder'):
    hf_weights.open_folder(tmp_path, allow_pickle=False)


def _zip(path, *members):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as packed:
    for name, data in members:
      packed.writestr(name, data)
  return path


def _renamed(path, old, new):
  """Changes a member's name in place: zipfile itself would not write it."""
  path.write_bytes(path.read_bytes().replace(old, new))
  return path


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_hostile_archives_are_refused_before_a_byte_is_used(
  tmp_path, monkeypatch
):
  cases = {
    'up.zip': ([('a/../../train.jsonl', toy.ROW)], 'leaves the archive'),
    'root.zip': ([('/etc/train.jsonl', toy.ROW)], 'leaves the archive'),
    'drive.zip': ([('c:/train.jsonl', toy.ROW)], 'leaves the archive'),
    'bomb.zip': ([('train.jsonl', b'\0' * (64 << 20))], 'unpacks'),
    'twice.zip': ([('train.jsonl', toy.ROW)] * 2, '2 members'),
  }
  for name, (members, message) in cases.items():
    cases[name] = (_zip(tmp_path / name, *members), message)
  nul = _renamed(
    _zip(tmp_path / 'nul.zip', ('trainX.jsonl', toy.ROW)), b'nX.', b'n\0.'
  )
  cases['nul.zip'] = (nul, 'leaves the archive')

  def unpack(*_, **__):
    raise AssertionError('a member was opened')

  monkeypatch.setattr(zipfile.ZipFile, 'open', unpack)
  for path, message in cases.values():
    with pytest.raises(ValueError, match=message):
      archive.open_archive(path)


def test_a_member_that_unpacks_to_more_than_it_says_is_an_error(tmp_path):
  path = _zip(tmp_path / 'lies.zip', ('train.jsonl', toy.ROW * 2000))
  size = struct.pack('<I', len(toy.ROW) * 2000)
  path.write_bytes(path.read_bytes().replace(size, struct.pack('<I', 40)))
  opened = archive.open_archive(path)
  with pytest.raises(ValueError, match='damaged'):
    list(json_reader.read(opened.open('train.jsonl'), 'train.jsonl'))


def test_what_would_steer_a_terminal_is_shown_not_obeyed():
  hostile = '\x1b[2J\x07\x9b31m\u202eabc\r\ud800\ufeff\U000e0041'
  shown = terminal_text.visible(f'kept: é\t日本\n{hostile}')
  assert shown.startswith('kept: é\t日本\n')
  assert shown.encode() and shown[8:].isprintable() is False  # tab, newline
  tail = shown.partition('\n')[2]
  assert tail.isprintable() and tail.isascii()
  assert terminal_text.visible(shown) == shown


def test_a_model_writes_no_markup_into_tables():
  text = rationale_predictions.plain('[/b] [red]x[/red] \x1b[31m')
  assert text.plain == '[/b] [red]x[/red] \\x1b[31m' and not text.spans
