"""Whose turn it is: a re-entrant lock that goes to whoever has waited longest.

Python's own lock goes to whoever asks at the right moment. A thread that lets go and asks again at once, as one that
steps does, then keeps it from all others for seconds.
"""

import threading
from collections import deque
from types import TracebackType


class Turn:
    """Use it as `threading.RLock`; a thread that lets go and asks again goes to the end of the line."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._line: deque[object] = deque()
        self._owner: int | None = None
        self._depth = 0

    def acquire(self, timeout: float | None = None) -> bool:
        """Whether the turn came within `timeout` seconds; None waits as long as it takes."""
        me, ticket = threading.get_ident(), object()
        with self._changed:
            if self._owner != me:
                self._line.append(ticket)
                try:
                    if not self._changed.wait_for(lambda: self._is_next(ticket), timeout):
                        return False
                    self._owner = me
                finally:
                    self._line.remove(ticket)
                    self._changed.notify_all()
            self._depth += 1
            return True

    def _is_next(self, ticket: object) -> bool:
        return self._owner is None and self._line[0] is ticket

    def release(self) -> None:
        """Let go, as often as it was acquired. Raises RuntimeError for a thread whose turn it is not."""
        with self._changed:
            if self._owner != threading.get_ident():
                raise RuntimeError("released by a thread whose turn it is not")
            self._depth -= 1
            if not self._depth:
                self._owner = None
                self._changed.notify_all()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.release()
