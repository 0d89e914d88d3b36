# SPDX-License-Identifier: Apache-2.0
"""What earlier runs left in a completions file."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from rationales import bill, jobs, ledger, records


@dataclasses.dataclass(frozen=True)
class History:
  """A completions file, read once.

  Attributes:
    index: its answers.
    jobs: its batches.
    settings: those of its last header; empty where the file is new.
  """

  index: records.Index
  jobs: jobs.Jobs
  settings: Mapping[str, Any]


def read(path: pathlib.Path, account: bill.Bill) -> History:
  """Reads a completions file, which may not exist yet.

  Args:
    path: the file.
    account: books what the file says was paid.

  Returns:
    The history.

  Raises:
    ValueError: a line is broken, or the file is of a later version.
  """
  index, known, settings = records.Index(), jobs.Jobs(), {}
  if path.exists():
    for offset, record in records.scan(path):
      index.add(offset, record)
      known.remember(record)
      account.remember(record)
      if record['kind'] == records.HEADER:
        ledger.check_format(path, record)
        settings = record['settings']
  return History(index.freeze(), known, settings)
