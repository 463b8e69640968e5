"""The one error tree.

A message is one line that says what was given, what was expected and what to do. The command line prints it and
exits 2; anything outside this tree that reaches the user is a bug.
"""

import difflib
from collections.abc import Iterable

MAX_NAMES_SHOWN = 20


class CartridgesError(Exception):
    """Base of every error a user can cause or mend. Line breaks in the message become spaces."""

    def __init__(self, message: str) -> None:
        """Keep `message` as one line."""
        super().__init__(" ".join(message.splitlines()))


class ConfigError(CartridgesError):
    """A configuration names an unknown key or preset, or gives a value of the wrong kind."""


class InputError(CartridgesError):
    """A file or argument of the user cannot be used."""


class TooLong(InputError):
    """A text does not fit the model's window."""


class OtherRun(InputError):
    """A folder holds results of something else, which would be mixed with new ones."""


class FormatError(CartridgesError):
    """An artifact written earlier is damaged or of another format."""


class InterruptedRun(CartridgesError):
    """A run stopped before its end; the message says how to resume it."""


def lacks_memory(error: BaseException) -> bool:
    """Whether it is what torch raises where a device or the machine has no memory left."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def half_pair(text: str) -> str:
    """What is wrong with a text that no file and no tokenizer takes, as JSON can write it; "" for a whole one."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair at {error.start}, expected Unicode"
    return ""


def unknown_name(kind: str, given: str, known: Iterable[str]) -> str:
    """Message for a name that does not exist, with the nearest one that does.

    >>> unknown_name("preset", "pockt", ["pocket", "paper"])
    "unknown preset 'pockt'; did you mean 'pocket'? known: paper, pocket"
    """
    names = sorted(known)
    message = f"unknown {kind} {given!r}"
    if not names:
        return f"{message}; there are none to choose from"
    nearest = difflib.get_close_matches(given.lower(), [name.lower() for name in names], n=1)
    if nearest:
        nearest = [name for name in names if name.lower() == nearest[0]]
        message += f"; did you mean {nearest[0]!r}?"
    else:
        message += ";"
    shown = ", ".join(names[:MAX_NAMES_SHOWN])
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return f"{message} known: {shown}{more}"
