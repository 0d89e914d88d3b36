# SPDX-License-Identifier: Apache-2.0
"""A hardware plan as a table for people."""

import rich.box
import rich.console
import rich.table

from dsbs_jax.runs import results

_GIB = 1 << 30
_COMPILERS = {
  'tpu': 'The peak is that of the TPU compiler, for the real train step.',
  'cpu': 'The peak is that of the CPU compiler for simulated devices, which'
  ' keeps\nbuffers that a GPU fuses away. Nobody asked a GPU.',
}


def show(plan) -> None:
  """Prints a `planner.HardwarePlan`."""
  console = rich.console.Console(highlight=False)
  request = plan.request
  console.print(
    f'{results.size_text(plan.num_params)} parameters on mesh {request.mesh}'
    f' of {request.device}',
    style='bold',
  )
  assumed = ', '.join(f'{name}={value}' for name, value in plan.assumed.items())
  console.print(f'with {assumed}', markup=False, soft_wrap=True)
  batch = ', '.join(f'{view} {shape}' for view, shape in plan.views.items())
  console.print(
    f'batch {batch} ({plan.batch_from})', markup=False, soft_wrap=True
  )
  table = rich.table.Table(box=rich.box.SIMPLE, show_header=False)
  table.add_column(style='dim')
  table.add_column(justify='right')
  table.add_column()
  for row in (*_memory_rows(plan), ('', '', ''), *_pace_rows(plan)):
    table.add_row(*row)
  console.print(table)
  for line in _remarks(plan):
    console.print(line, markup=False, soft_wrap=True)


def _memory_rows(plan):
  parts, compiled = plan.parts, plan.compiled
  kinds = 'per device, float32', 'sharded as the parameters'
  if 'LORA_RANK' in plan.assumed:
    dtype = plan.assumed['LORA_BASE_DTYPE']
    kinds = f'per device, frozen {dtype} and adapters', 'of the adapters alone'
  yield 'parameters', _gib(parts.params), kinds[0]
  yield 'optimizer state', _gib(parts.optimizer), plan.assumed['OPTIMIZER']
  yield 'gradients', _gib(parts.gradients), kinds[1]
  yield 'batch', _gib(parts.batch), ''
  if compiled is None:
    yield 'together', _gib(parts.total), 'already too much; not compiled'
  else:
    rest = max(0, compiled.peak - parts.total)
    yield 'activations, workspace', _gib(rest), 'the rest of the peak'
    state = 'compiled in' if compiled.complete else 'the compiler gave up after'
    yield 'peak', _gib(compiled.peak), f'{state} {compiled.seconds:.0f} s'
  result = 'fits' if plan.fits else 'DOES NOT FIT'
  yield 'usable memory', _gib(plan.memory), result


def _pace_rows(plan):
  pace = plan.forecast
  low, high = pace.utilisation
  yield (
    'FLOPs per step',
    f'{pace.flops_per_step / 1e12:,.2f} T',
    f'peak {pace.peak_tflops:g} TFLOP/s per device',
  )
  yield (
    'utilisation (MFU)',
    f'{100 * low:.0f} to {100 * high:.0f} %',
    'assumed; for T5, 24 to 47 are published',
  )
  milliseconds = [1e3 * seconds for seconds in pace.step_seconds]
  yield 'step time', _span(milliseconds, ' ms'), ''
  yield 'examples per second', _span(pace.examples_per_second), ''
  yield 'tokens per second', _span(pace.tokens_per_second), 'with padding'
  steps = f'{plan.assumed["TRAIN_STEPS"]:,} steps without evaluation'
  yield 'hours', _span(pace.hours), steps
  if pace.price is not None:
    each = plan.request.price_per_device_hour
    yield 'price', _span(pace.price), f'at {each:g} per device and hour'


def _remarks(plan):
  if plan.compiled:
    yield _COMPILERS[plan.compiled.compiler]
  if plan.unsplit:
    yield f'{len(plan.unsplit)} dimensions are not split, as in:'
    yield from (f'  {line}' for line in plan.unsplit[:3])
  for changes, peak, fits in plan.tried:
    result = 'fits' if fits else 'does not fit'
    yield f'tried {" ".join(changes)}: {_gib(peak)}, {result}'
  if plan.remedy:
    yield f'To make it fit, add: {" ".join(plan.remedy)}'
  elif plan.tried:
    yield 'None of these fits: take more, or larger, devices.'


def _gib(size: int) -> str:
  if size < _GIB / 100:
    return f'{size / (1 << 20):,.2f} MiB'
  return f'{size / _GIB:,.2f} GiB'


def _span(pair, unit: str = '') -> str:
  """Two ends in three digits, the smaller first."""
  low, high = sorted(pair)
  return f'{_digits(low)} to {_digits(high)}{unit}'


def _digits(value: float) -> str:
  return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'
