"""Who calls a model now: engines together, or one who swaps its attention or reads it plainly, alone.

Both swap the name of the attention in the model's configuration, so they take turns, whatever threads they are in; who
has to wait does. A thread may do one within the other.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_CHANGED = threading.Condition()
_CALLS: Counter[tuple[int, int]] = Counter()  # of engines, by the address of the model's configuration and the thread
_ALONE: dict[int, list[int]] = {}  # the thread that is, or is next, as often as it entered


@contextmanager
def together(config: Any, timeout: float | None = None) -> Iterator[bool]:
    """For a call of an engine on the model with this configuration; false where it may not begin within `timeout`."""
    key = id(config), threading.get_ident()
    with _CHANGED:
        may = _CHANGED.wait_for(lambda: _CALLS[key] > 0 or key[1] in _ALONE.get(key[0], [key[1]]), timeout)
        if may:
            _CALLS[key] += 1
    if not may:
        yield False
        return
    try:
        yield True
    finally:
        with _CHANGED:
            _CALLS[key] -= 1
            if not _CALLS[key]:
                del _CALLS[key]
            _CHANGED.notify_all()


@contextmanager
def alone(config: Any) -> Iterator[None]:
    """For whoever else uses that model. Engines begin no call meanwhile; those under way are waited for."""
    place, thread = id(config), threading.get_ident()
    with _CHANGED:
        _CHANGED.wait_for(lambda: thread in _ALONE.get(place, [thread]))
        _ALONE.setdefault(place, []).append(thread)
    try:
        with _CHANGED:
            _CHANGED.wait_for(lambda: not any(where == place and who != thread for where, who in _CALLS))
        yield
    finally:
        with _CHANGED:
            _ALONE[place].pop()
            if not _ALONE[place]:
                del _ALONE[place]
            _CHANGED.notify_all()
