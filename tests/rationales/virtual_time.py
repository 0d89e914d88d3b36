# SPDX-License-Identifier: Apache-2.0
"""An event loop whose clock jumps to the next timer: sleeping takes no time."""

import asyncio
import selectors


class _Selector(selectors.DefaultSelector):
  """Moves the clock on where the loop would wait for a timer alone."""

  def __init__(self):
    super().__init__()
    self.now, self.in_threads = 0.0, set()

  def select(self, timeout=None):
    if timeout is None:
      return super().select()
    # What is there already, such as a signal, comes before the next timer, and
    # so does what threads do meanwhile.
    ready = super().select(None if timeout > 0 and self.in_threads else 0)
    if not ready:
      self.now += timeout
    return ready


class _Loop(asyncio.SelectorEventLoop):
  def __init__(self):
    self._virtual = _Selector()
    super().__init__(self._virtual)

  def time(self):
    return self._virtual.now

  def run_in_executor(self, *call):
    future = super().run_in_executor(*call)
    self._virtual.in_threads.add(future)
    future.add_done_callback(self._virtual.in_threads.discard)
    return future

  async def shutdown_default_executor(self, timeout=None):
    del timeout  # Python 3.12 and later have one, which the clock would jump
    await super().shutdown_default_executor()


def run(coroutine):
  """Runs a coroutine as `asyncio.run` does; `loop.time()` starts at 0."""
  with asyncio.Runner(loop_factory=_Loop) as runner:
    return runner.run(coroutine)
