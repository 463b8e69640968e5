"""Text of token ids as they come: never half a character, and never the beginning of what may become a stop string."""

from collections.abc import Callable, Sequence
from functools import lru_cache

INCOMPLETE = "\ufffd"  # what tokenizers write for a character whose last bytes are still to come
MAX_BYTES = 4  # of a character
MAX_PENDING = 32  # ids without whole characters, before what there is of them is taken as it is


class Detokenizer:
    """The text of one reply. It decodes the newest ids behind a few earlier ones, so that a step costs the same."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self.decode = decode
        self.stops = stops
        self.ids: list[int] = []
        self.text = ""
        self.stopped = self._ended = False
        self._newest: list[int] = []  # the first `_decoded` of them are in the text, the others are still to come
        self._decoded = self._told = 0
        self._borders = [borders(stop) for stop in stops]
        self._begun = [0] * len(stops)  # how many characters of each stop string the text ends with

    def add(self, ids: Sequence[int]) -> None:
        """Take new ids; `stopped` is true once a stop string came."""
        self.ids += ids
        before = self.decode(self._newest[: self._decoded])
        newest = [*self._newest, *ids]
        now = self.decode(newest)
        is_whole = not now.endswith(INCOMPLETE)
        if is_whole and now == before and self.decode([*newest, *ids]) == now:
            return  # never to be seen, as special tokens are
        self._newest = newest
        if is_whole and len(now) > len(before):
            self._take(before, now, len(newest))
        elif len(newest) - self._decoded > MAX_PENDING:
            parts = [(self.decode(newest[:num]), num) for num in range(len(newest) - MAX_BYTES + 1, len(newest))]
            whole = [part for part in parts if not part[0].endswith(INCOMPLETE)]
            self._take(before, *(whole or parts[:1])[-1])

    def _take(self, before: str, now: str, num: int) -> None:
        """The first `num` of the newest ids are `now`: what is behind `before` is new text."""
        self._newest, self._decoded = self._newest[self._decoded :], num - self._decoded
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
            return
        for place, stop in enumerate(self.stops):
            for character in new:
                self._begun[place] = begun(stop, self._borders[place], self._begun[place], character)

    def told(self) -> str:
        """The text that is new and certain."""
        held_back = 0 if self.stopped or self._ended else max(self._begun, default=0)
        start, self._told = self._told, max(self._told, len(self.text) - held_back)
        return self.text[start : self._told]


def begun(stop: str, borders: Sequence[int], num: int, character: str) -> int:
    """How many first characters of `stop` a text ends with that ended with `num` of them before `character` came."""
    while num and stop[num] != character:
        num = borders[num - 1]
    return num + (stop[num] == character)


@lru_cache
def borders(stop: str) -> list[int]:
    """Of each beginning of `stop`: how long a shorter one it ends with at most (Knuth, Morris and Pratt)."""
    found = [0]
    for character in stop[1:]:
        found.append(begun(stop, found, found[-1], character))
    return found
