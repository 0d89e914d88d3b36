# SPDX-License-Identifier: Apache-2.0
"""metadata.json of a prepared dataset, which holds a digest of itself.

Its numbers go into tables and reports as they stand, so a flipped bit must not.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

_DIGEST = 'sha256'


def seal(path: pathlib.Path) -> None:
  """Adds its digest to a file that TFDS has written."""
  metadata = json.loads(path.read_text(encoding='utf-8'))
  metadata[_DIGEST] = _digest(metadata)
  path.write_text(json.dumps(metadata, indent=2), encoding='utf-8')


def load(path: pathlib.Path) -> dict[str, Any]:
  """What a file holds; ValueError if it is not the object that was written."""
  metadata = json.loads(path.read_text(encoding='utf-8'))
  if not isinstance(metadata, dict):
    raise ValueError(f'it is {str(metadata)[:60]!r}')
  if metadata.pop(_DIGEST, None) != _digest(metadata):
    raise ValueError(f'its contents are not those of its {_DIGEST}')
  return metadata


def _digest(metadata: Mapping[str, Any]) -> str:
  text = json.dumps(metadata, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
