"""Text of token ids as they come: never half a character, and never the beginning of what may become a stop string."""

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"  # what tokenizers write for a character whose last bytes are still to come


class Detokenizer:
    """The text of one reply. It decodes the newest ids behind a few earlier ones, so that a step costs the same."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self.decode = decode
        self.stops = stops
        self.ids: list[int] = []
        self.text = ""
        self.stopped = self._ended = False
        self._context = self._decoded = self._told = 0

    def add(self, ids: Sequence[int]) -> None:
        """Take new ids; `stopped` is true once a stop string came."""
        self.ids += ids
        before = self.decode(self.ids[self._context : self._decoded])
        now = self.decode(self.ids[self._context :])
        if len(now) > len(before) and not now.endswith(INCOMPLETE):
            self._context, self._decoded = self._decoded, len(self.ids)
            self._grow(now[len(before) :])

    def finish(self) -> None:
        """No more ids will come: what was held back is told."""
        whole = self.decode(self.ids)
        if not self.stopped and whole.startswith(self.text):
            self._grow(whole[len(self.text) :])
        self._ended = True

    def _grow(self, new: str) -> None:
        longest = max(map(len, self.stops), default=0)
        searched = max(0, len(self.text) - longest)
        self.text += new
        places = [place for stop in self.stops if (place := self.text.find(stop, searched)) >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True

    def told(self) -> str:
        """The text that is new and certain."""
        held_back = 0
        if not (self.stopped or self._ended):
            for stop in self.stops:
                ends = (num for num in range(len(stop) - 1, held_back, -1) if self.text.endswith(stop[:num]))
                held_back = max(held_back, next(ends, 0))
        start, self._told = self._told, max(self._told, len(self.text) - held_back)
        return self.text[start : self._told]
