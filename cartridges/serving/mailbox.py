"""From the engine's thread to the event loop's: calls in order, many of them behind one wake-up.

Waking a loop from another thread takes longer than what a token needs there, and a step of the engine has a token for
each of its replies.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Mailbox:
    """Takes calls on any thread; they are made on the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._is_woken = False
        self._lock = threading.Lock()

    def post(self, call: Callable[..., None], *args: Any) -> None:
        """Have `call(*args)` made soon, behind those that were posted before; never where the loop is closed."""
        with self._lock:
            self._calls.append((call, args))
            if self._is_woken:
                return
            self._is_woken = True
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            calls, self._calls, self._is_woken = self._calls, [], False
        for call, args in calls:
            call(*args)
