"""What making a cartridge cost, step by step, and after how many queries it pays."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from cartridges.errors import FormatError

Entry = tuple[str, int, int, float]  # step, tokens read, tokens written, seconds
_TRAINING_OF = re.compile(r"train\D*(\d+)")  # "train 128 slots"
_MEASURING = re.compile(r"eval")


@dataclass
class Ledger:
    """The steps in their order, each with its tokens read, tokens written and seconds.

    A step that begins with "eval" measures and makes nothing; "train 128 slots" is the cost of that size alone; every
    other step serves all sizes.
    """

    entries: list[Entry] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """All seconds, those of measuring included."""
        return sum(seconds for *_, seconds in self.entries)

    def build_s(self, num_slots: int) -> float:
        """The seconds of every step that one size needed: neither other sizes nor measuring."""
        return sum(seconds for step, _, _, seconds in self.entries if is_needed(step, num_slots))

    def to_dict(self) -> dict[str, Any]:
        """The entries, for JSON."""
        names = ("step", "num_tokens_read", "num_tokens_written", "seconds")
        return {name: [dict(zip(names, entry, strict=True)) for entry in value] for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What `to_dict` gave. Raises FormatError."""
        try:
            return cls(
                [
                    (str(e["step"]), int(e["num_tokens_read"]), int(e["num_tokens_written"]), float(e["seconds"]))
                    for e in content["entries"]
                ]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"a cost ledger cannot be read ({type(error).__name__}: {error}), expected entries with step, "
                "num_tokens_read, num_tokens_written and seconds; build again"
            ) from error


def is_needed(step: str, num_slots: int) -> bool:
    """Whether a cartridge of this size could not have been made without the step."""
    size = _TRAINING_OF.match(step)
    return not _MEASURING.match(step) and (size is None or int(size[1]) == num_slots)


def break_even(build_s: float, reading_s: float, cartridge_s: float) -> int | None:
    """After how many queries making the cartridge has cost fewer seconds than reading everything for each; None: never.

    `reading_s` and `cartridge_s` are the seconds of one query. Every query is taken to come alone and to read the
    corpus anew: no prefix cache, no batch. None also where the seconds are no finite numbers.
    """
    saved_s = reading_s - cartridge_s
    if not (math.isfinite(build_s) and math.isfinite(saved_s)) or saved_s <= 0:
        return None
    num_queries = max(0.0, build_s) / saved_s
    return math.floor(num_queries) + 1 if math.isfinite(num_queries) else None
