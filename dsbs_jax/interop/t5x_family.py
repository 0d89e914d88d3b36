# SPDX-License-Identifier: Apache-2.0
"""T5X trains T5s with one bias table per stack; any other is refused."""

import sys
from collections.abc import Mapping
from typing import Any

_WRONG_SETTING_STATUS = 2


def vocab_size(
  rows: int,
  *,
  sizes: Mapping[str, Any],
  family: str | None = None,
  relpos_bias_per_layer: bool = False,
) -> int:
  """VOCAB_SIZE, or the end of the program where the network is no T5 of T5X's.

  The first value that T5X's programs ask for: with a model file of another
  family, gin would name a macro that is not set. They catch no error of ours,
  and gin adds lines to it; hence one line on stderr and an exit.

  Args:
    sizes: macro of a T5's model file -> its value, None where none set it.
    family: FAMILY of a model file, None for a T5.
    relpos_bias_per_layer: RELPOS_BIAS_PER_LAYER of a model file.
  """
  unset = [name for name, value in sizes.items() if value is None]
  if family or relpos_bias_per_layer:
    asked = f'FAMILY is {family!r}' if family else 'the network is a umT5'
    problem = (
      f'{asked}, expected a T5 1.0 or 1.1, which is all that T5X trains here.'
      ' Take the built-in engine: dsbs train, eval or infer.'
    )
  elif unset:
    problem = (
      f'no gin file sets {", ".join(unset)}. Give a model file, such as'
      ' --gin_file=gin/models/base.gin.'
    )
  else:
    return rows
  print(f'error: {problem}', file=sys.stderr)
  sys.exit(_WRONG_SETTING_STATUS)
