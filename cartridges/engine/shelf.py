"""The cartridges of one engine, by name. A name is looked up here and nowhere else; it never becomes a path."""

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from cartridges.cartridge import Cartridge, Manifest
from cartridges.errors import InputError, unknown_name
from cartridges.model import Model

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_COMPOSED = 8  # compositions that are kept


def check_name(name: object, of: str = "a cartridge") -> None:
    """Raises InputError for a name that could not stand in a request."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(
            f"given the name {str(name)[:140]!r} for {of}, expected up to 128 letters, digits, dots, dashes and "
            "underscores, a letter or digit first"
        )


class Shelf:
    """Named cartridges of `model`, and what was composed of them lately. Threads may share a shelf."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._cartridges: dict[str, Cartridge] = {}
        self._composed: OrderedDict[tuple[str, ...], Cartridge] = OrderedDict()
        self._num_removed = 0
        self._lock = threading.RLock()
        self._composing = threading.Lock()  # one at a time, for each takes the memory of what it makes

    def add(self, name: str, source: Cartridge | str | Path) -> None:
        """Put a cartridge, or the one in a folder, under `name`, in the place of an older one.

        Raises InputError for a name of other characters or a folder without one, FormatError for one that is damaged or
        of another model.
        """
        check_name(name)
        cartridge = source if isinstance(source, Cartridge) else self._load(Path(source))
        cartridge.check_fits(self.model.identity)
        with self._lock:
            self._cartridges[name] = cartridge

    def _load(self, folder: Path) -> Cartridge:
        Manifest.read(folder)  # told before anything large is read
        # an engine on another device has copies there of those in use, which its budget counts
        return Cartridge.load(folder).to("cpu", self.model.dtype)

    def remove(self, name: str) -> None:
        """Take `name` off. Requests that run with it end with it."""
        with self._lock:
            removed = self._find(name)
            del self._cartridges[name]
            self._num_removed += 1
            if removed.digest:
                self._composed = OrderedDict(
                    (digests, whole) for digests, whole in self._composed.items() if removed.digest not in digests
                )

    def names(self) -> list[str]:
        """All names, sorted."""
        with self._lock:
            return sorted(self._cartridges)

    def manifest(self, name: str) -> Manifest:
        """What is known of a cartridge. Raises InputError for a name that is not there."""
        with self._lock:
            return self._find(name).manifest

    def get(self, names: Sequence[str]) -> Cartridge:
        """The cartridge of that name, or what several of them compose, in that order."""
        return self.composed(self._found(names))

    def ready(self, names: Sequence[str]) -> Cartridge | None:
        """What `get` gives, or None where it would have to be composed first."""
        return self._ready(self._found(names))

    def _found(self, names: Sequence[str]) -> list[Cartridge]:
        if not names:
            raise InputError("given no name of a cartridge, expected one or more")
        with self._lock:
            return [self._find(name) for name in names]

    def composed(self, cartridges: Sequence[Cartridge]) -> Cartridge:
        """What these compose; made once for the same ones."""
        if (whole := self._ready(cartridges)) is not None:
            return whole
        from cartridges.compose import composed_len

        num_slots = composed_len([cartridge.manifest for cartridge in cartridges])
        if num_slots >= self.model.window:  # told before it takes its memory
            raise InputError(
                f"given {len(cartridges)} cartridges of {num_slots} slots together, expected fewer than the window of "
                f"{self.model.window}; give fewer"
            )
        with self._composing:
            whole = self._ready(cartridges)  # which others may have made meanwhile
            return whole if whole is not None else self._compose(cartridges)

    def _ready(self, cartridges: Sequence[Cartridge]) -> Cartridge | None:
        if len(cartridges) == 1:
            return cartridges[0]
        digests = tuple(cartridge.digest for cartridge in cartridges)
        with self._lock:
            if digests in self._composed:
                self._composed.move_to_end(digests)
            return self._composed.get(digests)

    def _compose(self, cartridges: Sequence[Cartridge]) -> Cartridge:
        from cartridges.compose import compose

        num_removed = self._num_removed
        made = compose(cartridges, self.model)  # others may look names up meanwhile
        digests = tuple(cartridge.digest for cartridge in cartridges)
        with self._lock:
            if all(digests) and self._num_removed == num_removed:  # else it might be of one that is gone
                self._composed[digests] = made
                if len(self._composed) > MAX_COMPOSED:
                    self._composed.popitem(last=False)
        return made

    def _find(self, name: str) -> Cartridge:
        if name not in self._cartridges:
            raise InputError(unknown_name("cartridge", str(name)[:140], self._cartridges))
        return self._cartridges[name]
