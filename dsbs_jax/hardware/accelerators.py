# SPDX-License-Identifier: Apache-2.0
"""Accelerators by name: memory, peak rate, and the pods that they come in.

Rates are the vendors' own, for dense bfloat16 products. Memory is what a program
may use: for TPUs the limit that their compiler names when it refuses one, for
GPUs what the driver leaves of the nominal size.
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
  """One kind of accelerator.

  Attributes:
    name: as on the command line.
    memory_gib: what a program may use of its memory.
    peak_tflops: dense bfloat16 operations per second, in 1e12.
    float32_share: rate of matrix products of float32 in full precision, see
      `core/platform.py`, as a share of the peak.
    layouts: number of chips -> physical layout; empty where any number goes.
    megacore: whether the two cores of a chip are one device.
  """

  name: str
  memory_gib: float
  peak_tflops: float
  float32_share: float = 1 / 6
  layouts: dict[int, str] = dataclasses.field(default_factory=dict)
  megacore: bool = False

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
    Device('v4', 30.75, 275, layouts=_DEEP, megacore=True),
    Device('v5e', 15.75, 197, layouts=_FLAT),
    Device('v5p', 95.74, 459, layouts=_DEEP, megacore=True),
    Device('v6e', 31.25, 918, layouts=_FLAT),
    Device('a100', 79.2, 312, 19.5 / 312),
    Device('h100', 79.2, 989, 67 / 989),
    Device('h200', 139.7, 989, 67 / 989),
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
