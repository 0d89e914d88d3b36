# SPDX-License-Identifier: Apache-2.0
"""What earlier runs left in a completions file."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from rationales import bill, jobs, records


@dataclasses.dataclass(frozen=True)
class History:
  """A completions file, read once.

  Attributes:
    index: its answers.
    jobs: its batches.
    settings: those of its last header; None where the file is new.
  """

  index: records.Index
  jobs: jobs.Jobs
  settings: Mapping[str, Any] | None


def read(path: pathlib.Path, account: bill.Bill) -> History:
  """Reads a completions file, which may not exist yet.

  Args:
    path: the file.
    account: books what the file says was paid.

  Returns:
    The history.

  Raises:
    ValueError: a line is broken.
  """
  index, known, settings = records.Index(), jobs.Jobs(), None
  if path.exists():
    for offset, record in records.scan(path):
      index.add(offset, record)
      known.remember(record)
      account.remember(record)
      if record['kind'] == records.HEADER:
        settings = record['settings']
  return History(index.freeze(), known, settings)
