# SPDX-License-Identifier: Apache-2.0
"""A run's folder in place of gin files: the same settings, the same answers."""

import json
import pathlib
import shutil
import types

import jax
import pytest

from dsbs_jax.core import matmul_precision
from dsbs_jax.inference import infer_file
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.serving import server
from tests import small_runs
from tests.claims import doors

TEXTS = 'how many?\n{"input": "two plus two?"}\n'


def dsbs(verb, *arguments, stdin=''):
  """Runs a verb; its output, of which stderr is shown where it fails."""
  ended = doors.call(f'dsbs_jax.{verb}', *arguments, stdin=stdin.encode())
  assert ended.status == 0, ended.stderr
  return ended


def gin(verb, run, **macros):
  """The same verb as before there was a short form."""
  files = [f'gin/{verb}.gin', *small_runs.FILES[1:]]
  model = [b for b in small_runs.BINDINGS if b.split(' ')[0] in _KEPT]
  return dsbs(
    verb,
    f'--gin_search_paths={small_runs.REPOSITORY}',
    *(f'--gin_file={file}' for file in files),
    *(f'--gin.{binding}' for binding in model),
    f'--gin.CHECKPOINT_PATH={run.model_dir!r}',
    *(f'--gin.{name}={value!r}' for name, value in macros.items()),
  )


_KEPT = {
  *('VOCABULARY', 'VOCAB_SIZE', 'EMB_DIM', 'HEAD_DIM', 'MLP_DIM'),
  *('NUM_ENCODER_LAYERS', 'NUM_DECODER_LAYERS', 'MAX_DECODE_LEN'),
}


@pytest.fixture(scope='module')
def unbroken(unbroken, settings, tmp_path_factory):
  """A copy of the run, with the config that `dsbs train` leaves."""
  folder = tmp_path_factory.mktemp('runs') / 'told'
  shutil.copytree(unbroken.model_dir, folder)
  run = settings(folder)
  (folder / 'config.gin').write_text(gin_config.operative_text())
  return run


@pytest.fixture
def settings_of(monkeypatch):
  """What infer and serve are asked to do, in place of doing it."""

  def catch(verb, call, *arguments, **options):
    module, name = {'infer': (infer_file, 'infer'), 'serve': (server, 'serve')}[
      verb
    ]
    caught = []
    with monkeypatch.context() as patched:
      patched.setattr(module, name, lambda config: caught.append(config))
      call(verb, *arguments, **options)
    return caught[0]

  return catch


@pytest.mark.parametrize('verb', ['infer', 'serve'])
def test_a_student_multiplies_in_the_precision_that_is_set(
  verb, unbroken, settings_of, request
):
  request.addfinalizer(lambda: matmul_precision.use(None))
  flags = '--gin.MATMUL_PRECISION=tensorfloat32', '--gin.BACKEND=jax'
  config = settings_of(verb, dsbs, unbroken.model_dir, *flags)
  config.load(generates=True, num_options=0)
  assert jax.config.jax_default_matmul_precision == 'tensorfloat32'


def test_eval_scores_a_run_as_the_run_scored_itself(unbroken, tmp_path):
  said = dsbs('eval', unbroken.model_dir, f'--out={tmp_path}', '--splits=test')
  assert 'checkpoint_12 (latest' in said.stderr
  assert 'svamp_gt_label test  step 12' in said.stdout
  (file,) = (tmp_path / 'predictions').iterdir()
  own = pathlib.Path(unbroken.model_dir) / 'predictions' / file.name
  assert file.read_bytes() == own.read_bytes()
  (line,) = (tmp_path / 'eval.jsonl').read_text().splitlines()
  assert json.loads(line)['split'] == 'test'


def test_eval_of_an_exported_folder_stays_in_it_and_knows_its_step(
  unbroken, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  run = unbroken.model_dir
  for form, home in (('hf', 'exported-hf'), ('t5x', 'exported-t5x')):
    dsbs('export', run, f'--format={form}', f'--out={home}', '--step=6')
    before = {path.name for path in tmp_path.iterdir()}
    said = dsbs(
      'eval',
      home,
      f'--data_dir={unbroken.data_dir}',
      '--splits=test',
      # What 6 steps have taught is no UTF-8, which a tokenizer.json shows as ''.
      '--vocabulary=bytes',
    )
    assert 'svamp_gt_label test  step 6 ' in said.stdout
    assert {path.name for path in tmp_path.iterdir()} == before
    name = 'svamp_gt_label-test-000006.jsonl'
    own = pathlib.Path(run) / 'predictions' / name
    written = tmp_path / home / 'predictions' / name
    assert written.read_bytes() == own.read_bytes()
    (line,) = (tmp_path / home / 'eval.jsonl').read_text().splitlines()
    assert json.loads(line)['step'] == 6
  # Exported once more, it still knows.
  dsbs('export', 'exported-hf', '--format=hf', '--out=again')
  assert (
    json.loads(pathlib.Path('again/run.json').read_text())['exported_step'] == 6
  )


def test_infer_answers_alike_by_folder_checkpoint_export_and_gin(
  unbroken, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  run = unbroken.model_dir
  pathlib.Path('q.txt').write_text(TEXTS)
  gin('infer', unbroken, INPUT='q.txt', OUTPUT='gin.jsonl')
  expected = pathlib.Path('gin.jsonl').read_text()
  assert len(expected.splitlines()) == 2
  assert dsbs('infer', run, 'q.txt').stdout == expected
  dsbs('infer', run, 'q.txt', '--out=2024')
  assert pathlib.Path('2024').read_text() == expected
  last = f'{run}/checkpoint_12'
  assert dsbs('infer', last, stdin=TEXTS).stdout == expected
  other = dsbs('infer', run, 'q.txt', '--step=6').stdout
  assert other != expected
  name = pathlib.Path(run).name
  said = dsbs('export', run, '--format=hf').stdout
  assert said.startswith(f'{name}-hf: ')
  assert dsbs('infer', f'{name}-hf', 'q.txt').stdout == expected
  # Once more from there: the task travels on.
  dsbs('export', f'{name}-hf', '--format=t5x', '--out=again')
  assert dsbs('infer', 'again', 'q.txt').stdout == expected


def test_show_finds_the_data_of_a_run(unbroken):
  flags = (
    '--task=svamp_gt_dsbs',
    f'--data_dir={unbroken.data_dir}',
    '--vocabulary=bytes',
  )
  expected = dsbs('show', *flags, '--num=1').stdout
  assert 'svamp_gt_dsbs: ' in expected
  assert dsbs('show', unbroken.model_dir, '--num=1').stdout == expected
  one = dsbs('show', unbroken.model_dir, '--task=svamp_rationale').stdout
  assert one.startswith('svamp_rationale: ')


@pytest.mark.parametrize('verb', ['infer', 'serve'])
def test_the_settings_are_those_of_the_gin_files(unbroken, settings_of, verb):
  # The run's own metadata say what its environment chose.
  macros = {'DATA_DIR': unbroken.data_dir, 'PREFIXES': 'paper'}
  macros |= {'RATIONALES': True, 'STEP': 6}
  more = {'infer': {'INPUT': '-', 'OUTPUT': '-'}, 'serve': {'PORT': 8080}}[verb]
  expected = settings_of(verb, gin, unbroken, **macros, **more)
  short = ['--rationales', '--step=6']
  if verb == 'serve':
    short.append('--port=8080')
  assert settings_of(verb, dsbs, unbroken.model_dir, *short) == expected
  # --gin.NAME goes before the short flag, both before the folder.
  other = settings_of(
    verb, dsbs, unbroken.model_dir, '--task=a_gt_dsbs', '--step=6',
    '--gin.STEP=best', '--gin.MIXTURE_OR_TASK_NAME=svamp_llm_single',
  )  # fmt: skip
  assert (other.step, other.mixture_or_task_name) == (
    'best',
    'svamp_llm_single',
  )
  rows = settings_of(verb, dsbs, unbroken.model_dir, '--rows')
  assert rows.benchmark == 'svamp'


ERRORS = types.MappingProxyType(
  {
    'nothing': ((), ('no run is given', 'dsbs infer runs/cqa')),
    'nowhere': (('{run}/x',), ("x' does not exist", 'expected a run')),
    'twice': (
      ('{run}', '--gin.CHECKPOINT_PATH=runs/b'),
      ('given twice', '--gin.CHECKPOINT_PATH'),
    ),
    'step': (('{run}', '--step=7'), ('step is 7', 'checkpoint_12')),
    'step_text': (('{run}', '--step=bset'), ("step is 'bset'", 'best')),
    'vocabulary': (
      ('{run}', '--vocabulary=bytes:101'),
      ('was trained with vocabulary', 'VOCABULARY'),
    ),
    'module': (('{run}', '--module=no_such'), ('no_such',)),
    'three': (('{run}', 'a', 'b'), ("'b' is one argument too many",)),
    'another_network': (
      ('{run}', '--gin_file=gin/models/mini.gin'),
      ('another network than the settings', 'emb_dim is 16 there, 256 here'),
    ),
    'short_flag': (
      ('{run}', '--backend=cuda'),
      ("error: --backend=cuda: backend is 'cuda'",),
    ),
    'macro': (('{run}', '--gin.RATIONALE=True'), ('Did you mean RATIONALES?',)),
  }
)


@pytest.mark.parametrize('name', ERRORS)
def test_what_does_not_fit_is_one_clear_error(unbroken, name):
  arguments, parts = ERRORS[name]
  ended = doors.call(
    'dsbs_jax.infer',
    f'--gin_search_paths={small_runs.REPOSITORY}',
    *(argument.replace('{run}', unbroken.model_dir) for argument in arguments),
  )
  assert ended.status == 2, ended
  (line,) = (s for s in ended.stderr.splitlines() if s.startswith('error: '))
  for part in parts:
    assert part in line
