# SPDX-License-Identifier: Apache-2.0
"""python -m bench.beside_t5x: a worker that takes T5X's own training step.

T5X's example network, its encoder-decoder model, its Adafactor and its
`train_with_lr`, jitted whole on the rows that are called `mixed`: nothing of
this project but those rows. Needs T5X on PYTHONPATH (docs/t5x.md).
"""

import dataclasses
import functools

import jax
import seqio
from t5x import adafactor, models, train_state, trainer
from t5x.examples.t5 import network as t5x_network

from bench import worker, workload
from dsbs_jax.runtime import compilation_cache, malloc

_OURS = ('decoder_task_ids', 'encoder_token_index', 'decoder_token_index')


def main() -> None:
  arguments = workload.parser(__doc__).parse_args()
  malloc.keep_freed_memory()  # the same help for both
  compilation_cache.use_cache()
  data = workload.load(arguments.workload)
  model = _model_of(arguments)
  rows = data.batch('mixed', 0)['mixture']
  state = jax.jit(functools.partial(_initial, model, rows))(jax.random.key(0))
  step = jax.jit(
    functools.partial(
      trainer.train_with_lr, model=model, num_microbatches=None
    ),
    donate_argnums=0,
  )
  holder = [state]

  def measure(request):
    batch = _features_of(data.batch('mixed', int(request))['mixture'])
    holder[0], metrics = step(
      holder[0], batch, 1e-3, jax.random.fold_in(jax.random.key(1), 0)
    )
    return {'loss': float(metrics['loss'].total)}

  for number in range(data.num_steps):
    measure(number)
  worker.serve(measure, {'num_steps': data.num_steps})


def _model_of(arguments) -> models.EncoderDecoderModel:
  """T5X's model of the benchmark's size."""
  ours = workload.configured(arguments)
  vocabulary = seqio.ByteVocabulary()
  sizes = {
    field.name: getattr(ours, field.name)
    for field in dataclasses.fields(t5x_network.T5Config)
    if hasattr(ours, field.name)
  }
  config = t5x_network.T5Config(**sizes)
  return models.EncoderDecoderModel(
    module=t5x_network.Transformer(config=config),
    input_vocabulary=vocabulary,
    output_vocabulary=vocabulary,
    optimizer_def=adafactor.Adafactor(
      decay_rate=0.8,
      step_offset=0,
      logical_factor_rules=adafactor.standard_logical_factor_rules(),
    ),
  )


def _initial(model, rows, key):
  """T5X's train state with fresh parameters."""
  shapes = {name: array.shape for name, array in _features_of(rows).items()}
  variables = model.get_initial_variables(key, shapes)
  return train_state.FlaxOptimTrainState.create(model.optimizer_def, variables)


def _features_of(rows: dict) -> dict:
  """What T5X's model reads of our rows."""
  return {name: a for name, a in rows.items() if name not in _OURS}


if __name__ == '__main__':
  main()
