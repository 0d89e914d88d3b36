# SPDX-License-Identifier: Apache-2.0
"""What fuzzed gin text may bind; it can reach nothing else from here."""

import dataclasses

from dsbs_jax import contract

_UserError = contract.UserError


@dataclasses.dataclass(frozen=True)
class Model:
  width: int
  depth: int = 2

  def __post_init__(self):
    if not isinstance(self.width, int) or self.width < 1:
      raise _UserError(f'width is {self.width!r}, expected a number >= 1.')


@dataclasses.dataclass(frozen=True)
class Settings:
  model: Model
  folder: str


del contract, dataclasses
