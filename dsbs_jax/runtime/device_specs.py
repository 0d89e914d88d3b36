# SPDX-License-Identifier: Apache-2.0
"""Accelerators by name: memory, peak rate, and the pods that they come in.

Rates are the vendors' own, for dense bfloat16 products. Memory is what a
program may use: for TPUs the limit that their compiler names when it refuses
one, for GPUs what the driver leaves of the nominal size.
"""

import dataclasses
import math

from dsbs_jax import contract

GIB = 1 << 30


def _by_chips(layouts: str) -> dict[int, str]:
  return {
    math.prod(map(int, text.split('x'))): text for text in layouts.split()
  }


# Physical layouts by number of chips. A pod slice has no others.
_FLAT = _by_chips('1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16')
_DEEP = _by_chips('1x1x1 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8')


@dataclasses.dataclass(frozen=True)
class Device:
  """One kind of accelerator."""

  name: str  # as on the command line
  memory_gib: float  # what a program may use of its memory
  peak_tflops: float  # dense bfloat16 operations per second, in 1e12
  # Rate of matrix products of float32 in full precision, as a share of the
  # peak: see `core/matmul_precision.py`.
  float32_share: float = 1 / 6
  # Number of chips -> physical layout; empty where any number goes.
  layouts: dict[int, str] = dataclasses.field(default_factory=dict)
  megacore: bool = False  # whether the two cores of a chip are one device
  kinds: tuple[str, ...] = ()  # how JAX's `device_kind` begins for it

  @property
  def is_tpu(self) -> bool:
    """Whether the TPU compiler can compile for it."""
    return bool(self.layouts)

  @property
  def memory(self) -> int:
    """Usable memory in bytes."""
    return int(self.memory_gib * GIB)


# TPUs multiply float32 by six passes of bfloat16, GPUs outside of their matrix
# units: 19.5 and 67 TFLOP/s by the vendor's data sheets.
DEVICES = {
  device.name: device
  for device in (
    Device('v4', 30.75, 275, layouts=_DEEP, megacore=True, kinds=('TPU v4',)),
    Device('v5e', 15.75, 197, layouts=_FLAT, kinds=('TPU v5 lite', 'TPU v5e')),
    Device(
      'v5p',
      95.74,
      459,
      layouts=_DEEP,
      megacore=True,
      kinds=('TPU v5', 'TPU v5p'),
    ),
    Device('v6e', 31.25, 918, layouts=_FLAT, kinds=('TPU v6 lite', 'TPU v6e')),
    # What CUDA shows of 24 GB: with error correction less.
    Device('l4', 22.0, 121, 30.3 / 121),
    Device('rtx4090', 23.5, 165.2, 82.6 / 165.2),
    Device('a100', 79.2, 312, 19.5 / 312, kinds=('NVIDIA A100',)),
    Device('h100', 79.2, 989, 67 / 989, kinds=('NVIDIA H100',)),
    Device('h200', 139.7, 989, 67 / 989, kinds=('NVIDIA H200',)),
  )
}


def device(name: str) -> Device:
  """The accelerator of this name.

  Raises:
    UserError: there is no such name.
  """
  if name not in DEVICES:
    raise contract.UserError(
      f'--device is {name!r}, expected one of {", ".join(sorted(DEVICES))}.'
    )
  return DEVICES[name]


# Slower ones, whose names begin as those above: by the data sheets these cards
# do 756 and 835 TFLOP/s, this chip 138.
_SLOWER = (
  *('NVIDIA H100 PCIe', 'NVIDIA H100 NVL', 'NVIDIA H200 NVL'),
  'TPU v4 lite',
)


def layout(device: Device, num_chips: int) -> str:
  """The physical layout of a TPU slice with so many chips.

  Raises:
    UserError: no slice has this number of chips.
  """
  if num_chips not in device.layouts:
    known = sorted(device.layouts)
    nearest = min(known, key=lambda n: (abs(math.log(n / num_chips)), n))
    raise contract.UserError(
      f'--mesh asks for {num_chips} chips, but slices of {device.name} have'
      f' {", ".join(map(str, known))}. Choose a mesh with {nearest} devices.'
    )
  return device.layouts[num_chips]


def peak_flops(kind: str, dtype: str) -> float | None:
  """Matrix products' peak rate of a `device_kind`, in operations per second.

  In bfloat16, or in the full precision of float32. None where the device is not
  in the table: a CPU, for example, or a card of the same chip that is slower,
  or a part of one.
  """
  if kind.startswith(_SLOWER) or ' MIG ' in kind:
    return None
  matching = {
    prefix: device
    for device in DEVICES.values()
    for prefix in device.kinds
    if kind.startswith(prefix)
  }
  if not matching:
    return None
  found = matching[max(matching, key=len)]
  share = found.float32_share if dtype == 'float32' else 1.0
  return found.peak_tflops * 1e12 * share
