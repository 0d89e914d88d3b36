# SPDX-License-Identifier: Apache-2.0
"""The bars that `prepare` draws while it reads, writes and downloads."""

import rich.console
import rich.progress

from dsbs_jax.data.remote import download


def progress() -> rich.progress.Progress:
  """A bar per task, with what is done and the time it took."""
  return rich.progress.Progress(
    rich.progress.TextColumn('{task.description}'),
    rich.progress.BarColumn(),
    rich.progress.TextColumn('{task.completed:,.0f}'),
    rich.progress.TimeElapsedColumn(),
    console=rich.console.Console(stderr=True, markup=False, soft_wrap=True),
  )


def download_bar(bar: rich.progress.Progress) -> download.Progress:
  """What a download reports to, drawn as a bar of bytes."""
  bars = []

  def update(done: int, total: int | None) -> None:
    if not bars:
      bars.append(bar.add_task('download, bytes', total=total))
    bar.update(bars[0], completed=done, total=total)

  return update
