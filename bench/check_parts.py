# SPDX-License-Identifier: Apache-2.0
"""The configurations that `bench.accelerator_check` measures, by kind of device.

Flags are those of `bench.accelerator`. MORE stands for the batches of more
pairs.
"""

import dataclasses
from collections.abc import Mapping

MORE = 'MORE'
_MORE = f'--workload={MORE}'
# Part -> name of a configuration -> flags, one text.
Parts = Mapping[str, Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Kind:
  """How a kind of device is checked."""

  parts: Parts  # what is measured on it, in this order
  # Processes that compile together. A TPU is opened by one process at a time;
  # there, parity comes first and alone.
  at_once: int
  peers: bool  # whether transformers decodes on it, too

  @property
  def names(self) -> list[str]:
    """All parts, also those that are no configurations."""
    return ['parity', *self.parts, *(['peers'] if self.peers else [])]


_SCANNED_REMAT = '--model=large --scan_layers --remat=full'
_FLOAT32 = '--model=base --dtype=float32'
_CHOICES = {
  'base, views apart': '--model=base --join_views=0',
  'base, attention written out': '--model=base --attention=written_out',
  'base, both views in the same rows': '--model=base --layout=mixed',
}


def _decoding(models: tuple[str, ...], rows: tuple[int, ...]) -> dict[str, str]:
  return {
    f'{model}, {number} rows': f'--model={model} --decode_rows={number}'
    for model in models
    for number in rows
  }


GPU = Kind(
  at_once=8,
  peers=True,
  parts={
    'train': {
      'base': '--model=base',
      'base, more pairs': f'--model=base {_MORE}',
      'small': '--model=small',
      'large': '--model=large',
      'large, scanned, remat': _SCANNED_REMAT,
    },
    'decode': _decoding(('base', 'small', 'large'), (1, 32, 256)),
    'float32': {
      'base, float32': _FLOAT32,
      'base, float32 as TF32': f'{_FLOAT32} --precision=default',
    },
    'choices': _CHOICES
    | {
      'base, attention of cuDNN': '--model=base --attention=cudnn',
      'base, more pairs, attention of cuDNN': (
        f'--model=base --attention=cudnn {_MORE}'
      ),
      'base, products of cuBLAS only': (
        '--model=base --xla_flags=--xla_gpu_enable_triton_gemm=false'
      ),
    },
  },
)

# What counts most comes first, since each configuration compiles by itself.
TPU = Kind(
  at_once=1,
  peers=False,
  parts={
    'train': {
      'base': '--model=base',
      'base, all chips': '--model=base --chips=0',
      'base, more pairs, remat': f'--model=base --remat=full {_MORE}',
      'small': '--model=small',
      'large, scanned, remat': _SCANNED_REMAT,
    },
    'decode': _decoding(('base',), (256, 32, 1))
    | _decoding(('small', 'large'), (256,)),
    'float32': {
      'base, float32': _FLOAT32,
      'base, float32 as bfloat16': f'{_FLOAT32} --precision=default',
    },
    'choices': {'base, scanned': '--model=base --scan_layers'}
    | _CHOICES
    | {'base, attention of the library': '--model=base --attention=library'},
  },
)

KINDS = {'gpu': GPU, 'tpu': TPU}
