# SPDX-License-Identifier: Apache-2.0
"""Every gin file resolves, and model files give the published models."""

import inspect
import pathlib

import pytest

from dsbs_jax.core import network, optimizer
from dsbs_jax.data.batching import layouts
from dsbs_jax.data.vocabulary import vocabularies
from dsbs_jax.inference import evaluate_checkpoint, infer_file
from dsbs_jax.runs import results, run_folder
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.serving import server
from dsbs_jax.training import session, train_config

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MODELS = sorted(path.stem for path in (REPOSITORY / 'gin/models').glob('*.gin'))
BENCHMARKS = sorted(
  path.stem for path in (REPOSITORY / 'gin/benchmarks').glob('*.gin')
)
# Parameters of the public T5 checkpoints.
PARAMETERS = {
  'small': 76_961_152,
  'base': 247_577_856,
  'large': 783_150_080,
  'xl': 2_849_757_184,
  'xxl': 11_135_332_352,
  't5_1_0_base': 222_903_552,
  'gemma3_270m': 268_098_176,
  'gemma3_1b': 999_885_952,
  't5gemma2_270m_270m': 368_424_192,
  't5gemma2_1b_1b': 1_697_782_016,
}
# The rows of the tables of those whose vocabulary is not T5's.
ROWS = dict.fromkeys(
  ('gemma3_270m', 'gemma3_1b', 't5gemma2_270m_270m', 't5gemma2_1b_1b'), 262_144
)


def _build(settings, engine, *files, bindings=()):
  return gin_config.build(
    settings,
    gin_files=[f'gin/{engine}.gin', *(f'gin/{file}.gin' for file in files)],
    gin_bindings=bindings,
    search_paths=[str(REPOSITORY)],
  )


def _train(*files, bindings=()):
  return _build(
    train_config.TrainConfig,
    'train',
    *files,
    bindings=["MODEL_DIR = '/x'", *bindings],
  )


@pytest.mark.parametrize('model', MODELS)
def test_models_resolve_for_training_and_evaluation(model):
  size = [f'VOCAB_SIZE = {ROWS[model]}'] if model in ROWS else []
  trained = _train(f'models/{model}', 'benchmarks/cqa', bindings=size).model
  scored = _build(
    evaluate_checkpoint.EvalConfig,
    'eval',
    f'models/{model}',
    'benchmarks/cqa',
    bindings=["CHECKPOINT_PATH = '/x'", *size],
  ).model
  assert network.param_shapes(trained) == network.param_shapes(scored)
  if model in PARAMETERS:
    assert results.num_params(trained) == PARAMETERS[model]


@pytest.mark.parametrize('benchmark', BENCHMARKS)
def test_benchmarks_resolve(benchmark):
  run = _train('models/tiny', f'benchmarks/{benchmark}')
  assert run.mixture_or_task_name == f'{benchmark}_gt_dsbs'


def test_the_defaults_are_the_recipe_of_the_paper():
  run = _train('models/base', 'benchmarks/cqa')
  assert (run.train_steps, run.batch_size) == (10_000, 64)
  assert (run.learning_rate, run.clip_norm) == (5e-5, 1.0)
  assert (run.objective.alpha, run.model.dropout_rate) == (0.5, 0.1)
  rate = run.schedule(run.learning_rate, total_steps=run.train_steps)
  assert float(rate(250)) == pytest.approx(4.875e-5)
  assert run.optimizer.__name__ == 'adamw_hf' and run.paired


@pytest.mark.parametrize(
  ('bindings', 'size'),
  [
    ((), 32_128),
    (("VOCABULARY = 'bytes'",), 384),
    (("VOCABULARY = 'bytes:300'",), 640),
    (("VOCABULARY = 'bytes'", 'VOCAB_SIZE = 999'), 999),
  ],
)
def test_the_vocabulary_decides_the_rows_of_the_embedding(bindings, size):
  files = 'models/tiny', 'benchmarks/cqa'
  assert _train(*files, bindings=bindings).model.vocab_size == size
  macros = run_folder.parse_macros(gin_config.operative_text())
  assert macros['VOCAB_SIZE'] == size
  bindings = ["CHECKPOINT_PATH = '/x'", *bindings]
  for engine, settings in (
    ('eval', evaluate_checkpoint.EvalConfig),
    ('infer', infer_file.InferConfig),
    ('serve', server.ServeConfig),
  ):
    given = (
      bindings
      if engine != 'infer'
      else [*bindings, "INPUT = '-'", "OUTPUT = '-'"]
    )
    built = _build(settings, engine, *files, bindings=given)
    assert built.model.vocab_size == size


def test_a_random_start_at_a_finetuning_rate_or_in_a_large_table_is_said():
  bindings = "VOCABULARY = 'bytes'", 'VOCAB_SIZE = 32128'
  run = _train('models/tiny', 'benchmarks/cqa', bindings=bindings)
  rate, size = session.random_start_hints(run, vocabularies.load('bytes'))
  assert 'LEARNING_RATE is 5e-05' in rate
  assert '359 ids: 9,012,992 parameters for 886,528' in size
  run = _train(
    *('models/tiny', 'benchmarks/cqa'),
    bindings=[bindings[0], 'LEARNING_RATE = 1e-3'],
  )
  assert not session.random_start_hints(run, vocabularies.load('bytes'))


ARGUMENTS = {
  'linear_decay': {'warmup_steps': 20},
  'constant': {'warmup_steps': 20},
  'rsqrt': {'warmup_steps': 20},
  'adamw_hf': {
    'beta1': 0.8,
    'beta2': 0.9,
    'epsilon': 1e-6,
    'weight_decay': 0.1,
  },
  'adamw': {'beta1': 0.8, 'beta2': 0.9, 'epsilon': 1e-6, 'weight_decay': 0.1},
  'adafactor': {
    'decay_exponent': 0.5,
    'step_offset': -2,
    'clipping_threshold': 2.0,
    'min_dim_size_to_factor': 8,
    'scale_by_parameter': False,
    'epsilon1': 1e-20,
    'epsilon2': 1e-2,
  },
}


@pytest.mark.parametrize('name', ARGUMENTS)
def test_what_an_optimizer_or_schedule_takes_can_be_set_by_its_name(name):
  made = getattr(optimizer, name)
  field = 'schedule' if 'warmup_steps' in ARGUMENTS[name] else 'optimizer'
  given = {'total_steps', 'clip_norm'}
  keyword_only = set(inspect.getfullargspec(made).kwonlyargs)
  assert set(ARGUMENTS[name]) == keyword_only - given
  bindings = [f'{field.upper()} = @optimizer.{name}'] + [
    f'optimizer.{name}.{argument} = {value}'
    for argument, value in ARGUMENTS[name].items()
  ]
  run = _train('models/tiny', 'benchmarks/cqa', bindings=bindings)
  for line in bindings:
    assert line in gin_config.operative_text()
  _train('models/tiny', 'benchmarks/cqa')  # another config changes nothing
  assert getattr(run, field).keywords == ARGUMENTS[name]
  if field == 'schedule':
    assert run.depends_on_train_steps() == (name == 'linear_decay')


@pytest.mark.parametrize(
  ('binding', 'expected'),
  [
    ('adamw_hf.beta1 = 1.5', r'beta1=1.5: beta1 is 1.5, expected .* \[0, 1\)'),
    ('adamw_hf.weight_decay = "a"', "weight_decay is 'a', expected a number"),
    ('linear_decay.warmup_steps = 99999', 'warmup_steps=99999: .* is 99999'),
    ('linear_decay.warmup_steps = 0.06', 'warmup_steps=0.06: .*whole number'),
    ('linear_decay.warmup_steps = "a"', """warmup_steps="a": .* is 'a'"""),
    ('linear_decay.total_steps = 5', 'total_steps is read by nothing'),
    ('adamw_hf.clip_norm = 2.0', 'clip_norm is read by nothing'),
    ('adamw.beta1 = 0.5', 'optimizer.adamw.beta1 is read by nothing'),
  ],
)
def test_what_an_optimizer_cannot_take_is_refused(binding, expected):
  with pytest.raises(ValueError, match=expected):
    _train('models/tiny', 'benchmarks/cqa', bindings=[f'optimizer.{binding}'])


def test_what_a_layout_takes_can_be_set_by_its_name():
  bindings = 'LAYOUT = @layouts.Bucketed', 'layouts.Bucketed.num_shapes = 2'
  run = _train('models/tiny', 'benchmarks/cqa', bindings=bindings)
  assert bindings[1] in gin_config.operative_text()
  _train('models/tiny', 'benchmarks/cqa')  # another config changes nothing
  assert run.layout(truncate=True) == layouts.Bucketed(
    truncate=True, num_shapes=2
  )
  for binding, expected in (
    ('Packed.truncate = "no"', "Packed.truncate is 'no', expected True or"),
    ('Padded.truncate = True', 'layouts.Padded.truncate is read by nothing'),
    ('Packed.lengths = {}', 'layouts.Packed.lengths is read by nothing'),
  ):
    with pytest.raises(ValueError, match=expected):
      _train(
        *('models/tiny', 'benchmarks/cqa'), bindings=[f'layouts.{binding}']
      )


def test_every_term_of_the_objective_is_bound_for_t5x_too():
  """T5X ignores a macro that no file reads; bound, it is trained or refused."""
  bound = [
    (REPOSITORY / file).read_text().partition('\nobjective.Distillation:\n')[2]
    for file in ('gin/train.gin', 'gin/t5x/train.gin')
  ]
  ours, theirs = (set(text.partition('\n\n')[0].split('\n')) for text in bound)
  assert ours - {''} == theirs and '  mi_weight = %MI_WEIGHT' in theirs


def test_adafactor_is_one_file():
  run = _train('models/tiny', 'benchmarks/cqa', 'optimizers/adafactor')
  assert run.optimizer.__name__ == 'adafactor' and run.clip_norm is None
  run.transformation()


def test_files_open_with_what_they_are():
  for path in (REPOSITORY / 'gin').rglob('*.gin'):
    assert path.read_text().startswith('# '), path
