# SPDX-License-Identifier: Apache-2.0
"""Our gin and flag files are found from any folder, after the user's own."""

import pathlib
import shutil

import pytest

from dsbs_jax.runtime import command, gin_files
from dsbs_jax.runtime.configuration import gin_config, gin_texts
from dsbs_jax.training import train_config

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(params=['checkout', 'wheel'])
def installed(request, tmp_path, monkeypatch):
  """Where the package lies, and the current folder beside it is empty."""
  package = REPOSITORY / 'dsbs_jax'
  if request.param == 'wheel':
    package = tmp_path / 'site-packages' / 'dsbs_jax'
    shutil.copytree(REPOSITORY / 'gin', package / 'gin')
    # pip installs gin-config beside it.
    (package.parent / 'gin').mkdir()
    (package.parent / 'gin' / '__init__.py').touch()
  monkeypatch.setattr(gin_files, '_PACKAGE', package)
  (tmp_path / 'empty').mkdir()
  monkeypatch.chdir(tmp_path / 'empty')
  return pathlib.Path(gin_files.root())


def test_every_file_is_found(installed):
  assert gin_files.find('eval.gin') == str(installed / 'gin' / 'eval.gin')
  assert gin_files.find('models/mini.gin').endswith('gin/models/mini.gin')
  names = {file.stem for file in (REPOSITORY / 'gin/models').glob('*.gin')}
  assert set(gin_files.models()) == names and 'base' in names
  with pytest.raises(ValueError, match="gin file 'no.gin' is not in"):
    gin_files.find('no.gin')


def test_the_current_folder_goes_first(installed):
  found = gin_texts.locate('gin/train.gin', ['.'])
  assert found == installed / 'gin' / 'train.gin'
  pathlib.Path('gin').mkdir()
  pathlib.Path('gin/train.gin').write_text('# mine\n')
  assert gin_texts.read('gin/train.gin', ['.']) == '# mine\n'
  with pytest.raises(ValueError, match=r"'gin/no.gin' is not in \['.'\]"):
    gin_texts.locate('gin/no.gin', ['.'])


def test_a_file_of_ours_can_be_included(installed):
  pathlib.Path('mine.gin').write_text(
    "include 'gin/train.gin'\ninclude 'gin/models/nano.gin'\n"
    "MODEL_DIR = 'a'\nVOCABULARY = 'bytes'\n"
    "MIXTURE_OR_TASK_NAME = 'cqa_gt_dsbs'\n"
  )
  run = gin_config.build(
    train_config.TrainConfig, gin_files=['mine.gin'], gin_bindings=[]
  )
  assert run.model.emb_dim == 64


def test_flag_files_are_read_with_those_that_they_name(installed):
  given = ['sweep', '--flagfile=gin/sweeps/cpu_cqa.flags', '--seeds=1']
  expanded = gin_files.expand_flag_files(given)
  assert expanded[0] == 'sweep' and expanded[-1] == '--seeds=1'
  # cpu.flags stands first in it: later flags override.
  assert '--methods=gt_finetune,gt_dsbs,llm_finetune,llm_dsbs,gt_single' in (
    expanded
  )
  assert expanded.index('--benchmarks=svamp') < expanded.index(
    '--benchmarks=cqa'
  )
  assert not [flag for flag in expanded if flag.startswith('--flagfile')]
  rewritten = command.rewrite_gin_flags(expanded)
  assert '--gin_bindings=TRAIN_STEPS = 150' in rewritten


def test_a_flag_file_of_the_users_is_left_to_absl(installed):
  pathlib.Path('gin/sweeps').mkdir(parents=True)
  pathlib.Path('gin/sweeps/cpu.flags').touch()
  for name in ('gin/sweeps/cpu.flags', 'no.flags'):
    assert gin_files.expand_flag_files([f'--flagfile={name}']) == [
      f'--flagfile={name}'
    ]


def test_a_family_keeps_nothing_of_another_ones_values():
  text = """\
KINDS = \\
    ('a',
     'b')
one.T5.kinds = %KINDS
two.Gemma.sizes = \\
    (1,
     2)
run.model = @one.T5()
"""
  families = {'T5': (None,), 'Gemma': ('gemma',)}
  assert gin_texts.of_family(text, 'gemma', families) == (
    'two.Gemma.sizes = \\\n    (1,\n     2)\nrun.model = @two.Gemma()\n'
  )
