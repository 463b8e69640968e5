"""What the caller holds of a request that was handed in: it can be waited for, and ended."""

import threading
from collections.abc import Callable

from cartridges.engine.request import Result
from cartridges.errors import CartridgesError


class Handle:
    """A request on its way. Any thread may use it."""

    def __init__(self) -> None:
        self.on_abort: Callable[[], None] | None = None
        self._ended = threading.Event()
        self._result: Result | None = None
        self._error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self._ended.is_set()

    @property
    def failed(self) -> bool:
        return self._error is not None

    def abort(self) -> None:
        """End it with the next step, with what there is; nothing where it has ended already."""
        if not self.done and self.on_abort:
            self.on_abort()

    def result(self, timeout: float | None = None) -> Result:
        """The result, waited for.

        Raises CartridgesError where the request failed, TimeoutError where it has not ended after `timeout` seconds.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"no result after {timeout} seconds")
        if isinstance(self._error, CartridgesError):
            raise self._error
        if self._result is None:
            raise CartridgesError(f"the request failed ({type(self._error).__name__}: {self._error})") from self._error
        return self._result

    def end(self, result: Result | None, error: Exception | None = None) -> None:
        """What came of it; for the engine to tell."""
        self._result, self._error = result, error
        self._ended.set()
