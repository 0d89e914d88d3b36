# SPDX-License-Identifier: Apache-2.0
"""Shapes for a plan are those that training will have."""

import dataclasses
import pathlib
import types

import pytest

from dsbs_jax.core import objective, partitioning
from dsbs_jax.data import register
from dsbs_jax.data.batching import batch_order, loader, row_shapes
from dsbs_jax.hardware import batch_shapes
from dsbs_jax.preparing import prepare
from dsbs_jax.runtime.configuration import gin_config
from dsbs_jax.training import lowered_step, train_config

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BINDINGS = (
  "MODEL_DIR = 'nowhere'",
  "VOCABULARY = 'bytes'",
  'VOCAB_SIZE = 384',
  'EMB_DIM = 16',
  'NUM_ENCODER_LAYERS = 1',
  'NUM_DECODER_LAYERS = 1',
  'BATCH_SIZE = 4',
  'DROPOUT_RATE = 0.0',
  'MI_WEIGHT = 0.1',
)


def test_shapes_of_batches_are_read_and_checked():
  found = batch_shapes.given(['label:32x128/16', 'rationale:24x256/176'])
  assert found['label'] == row_shapes.Shape(32, 128, 16)
  assert found['rationale'] == row_shapes.Shape(24, 256, 176)
  assert batch_shapes.given(['8x64/8']) == {
    'mixture': row_shapes.Shape(8, 64, 8)
  }
  for text in ('32x128', 'gold:32x128/16', '00x128/16', 'label:32x128/0'):
    with pytest.raises(ValueError, match=r'expected \[view:\]ROWSxINPUTS'):
      batch_shapes.given([text])
  with pytest.raises(ValueError, match='two shapes of mixture'):
    batch_shapes.given(['32x128/16', '32x128/96'])


def test_typical_shapes_follow_the_task(run):
  both = batch_shapes.typical(run, multiple=24)
  assert {view: shape.rows for view, shape in both.items()} == {
    'label': 48,
    'rationale': 48,
  }
  plain = dataclasses.replace(run, mixture_or_task_name='cqa_gt_finetune')
  assert list(batch_shapes.typical(plain, multiple=1)) == ['label']


def test_prepared_data_gives_its_own_shapes_and_tied_pairs_lower(tmp_path):
  prepare.prepare(
    prepare.PrepareConfig(
      benchmark='svamp',
      source=str(REPOSITORY / 'tests/data/fixtures/archive'),
      data_dir=str(tmp_path),
    )
  )
  run = gin_config.build(
    train_config.TrainConfig,
    gin_files=[
      'gin/train.gin',
      'gin/models/tiny.gin',
      'gin/benchmarks/svamp.gin',
    ],
    gin_bindings=[*BINDINGS, f'DATA_DIR = {str(tmp_path)!r}'],
    search_paths=[str(REPOSITORY)],
  )
  views = batch_shapes.of_data(run, multiple=1)
  data = loader.open(
    run.mixture_or_task_name,
    register.source(data_dir=run.data_dir, vocabulary=run.vocabulary),
    batch_order.BatchOrder(batch_size=4, seed=run.seed),
    pair_ids=True,
    skip_padding=True,
  )
  batch = data.batch(0)
  assert views.keys() == batch.keys()
  mesh = partitioning.make_mesh('1x1')
  described = lowered_step.batch_shapes(views, mesh, pair_ids=True)
  for view, rows in batch.items():
    assert {key: array.shape for key, array in rows.items()} == {
      key: array.shape for key, array in described[view].items()
    }
  assert lowered_step.lower_train_step(run, mesh, views).as_text()


def test_typical_rows_have_room_for_their_tokens_at_every_batch_size():
  for batch_size in range(1, 130):
    run = types.SimpleNamespace(
      mixture_or_task_name='cqa_gt_dsbs',
      skip_padding=True,
      batch_size=batch_size,
      objective=objective.Distillation(
        verdict_weight=batch_size % 2, counterfactual_weight=batch_size % 2
      ),
    )
    for multiple in (1, 8):
      for shape in batch_shapes.typical(run, multiple=multiple).values():
        assert shape.rows > 0 and shape.rows % multiple == 0
        assert shape.rows * shape.inputs >= shape.input_slots
        assert shape.rows * shape.targets >= shape.target_slots
    label, rationale, *more = batch_shapes.typical(run, multiple=1).values()
    assert len(more) == 2 * (batch_size % 2)
    assert label.input_slots * 64 >= 3408 * batch_size
    assert rationale.input_slots * 64 >= 3472 * batch_size
