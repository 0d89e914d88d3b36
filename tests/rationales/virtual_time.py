# SPDX-License-Identifier: Apache-2.0
"""An event loop whose clock jumps to the next timer: sleeping takes no time."""

import asyncio
import selectors


class _Selector(selectors.DefaultSelector):
  """Moves the clock on where the loop would wait for a timer."""

  now = 0.0

  def select(self, timeout=None):
    if timeout is None:
      return super().select()
    # What is there already, such as a signal, comes before the next timer.
    ready = super().select(0)
    if not ready:
      self.now += timeout
    return ready


def run(coroutine):
  """Runs a coroutine as `asyncio.run` does; `loop.time()` starts at 0."""

  def loop() -> asyncio.SelectorEventLoop:
    selector = _Selector()
    made = asyncio.SelectorEventLoop(selector)
    made.time = lambda: selector.now
    return made

  with asyncio.Runner(loop_factory=loop) as runner:
    return runner.run(coroutine)
