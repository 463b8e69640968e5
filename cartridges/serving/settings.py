"""What a server can be told: its limits, its keys, and which folders may be added while it runs."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from cartridges.config import Config
from cartridges.errors import InputError

MIN_KEY_LEN = 8


class ServeConfig(Config):
    """Limits of the server. Sizes are bytes, times are seconds."""

    host: str = Field(
        default="127.0.0.1", description="the address to listen at; only this machine reaches the default"
    )
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes a free one")
    kv_tokens_total: int | None = Field(
        default=None,
        gt=0,
        description="keys and values of so many tokens are held; if not given, 65,536 or twice the window, and at most "
        "what half of the free memory holds",
    )
    max_replies: int = Field(default=256, gt=0, description="replies in work or waiting; what comes above gets 429")
    max_choices: int = Field(default=32, gt=0, description="replies to one request: prompts times n")
    max_composed: int = Field(default=16, gt=0, description="cartridges in one request")
    max_cartridges: int = Field(default=256, gt=0, description="cartridges on the shelf")
    max_body_bytes: int = Field(default=4 << 20, gt=0, description="the largest request; what is above gets 413")
    max_logprobs: int = Field(default=20, ge=0, description="likeliest tokens told of one position")
    default_max_tokens: int = Field(
        default=1024, gt=0, description="of a chat that names none; never more than the window and kv_tokens_total hold"
    )
    read_s: float = Field(default=30.0, gt=0, description="for a request to arrive")
    write_s: float = Field(default=30.0, gt=0, description="for a reader to take a piece of a reply")
    reply_s: float = Field(default=600.0, gt=0, description="for a request to be answered, waiting included")
    drain_s: float = Field(default=30.0, ge=0, description="for running requests to finish after SIGTERM")
    retry_after_s: int = Field(default=1, gt=0, description="what a refused client is told to wait")


@dataclass(frozen=True)
class Keys:
    """Who may ask, and who may change what is served. No `api` keys: everyone may ask. No `admin` keys: nobody may."""

    api: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()

    def allows(self, given: str) -> bool:
        """Whether `given` may ask for replies."""
        return not self.api or _among(given, (*self.api, *self.admin))

    def allows_changes(self, given: str) -> bool:
        """Whether `given` may add and remove cartridges."""
        return _among(given, self.admin)


def _among(given: str, keys: Sequence[str]) -> bool:
    """Compared with every key in full, so that the time taken tells nothing of them."""
    raw = given.encode("utf-8", "surrogateescape")
    found = [hmac.compare_digest(raw, key.encode()) for key in keys]
    return any(found)


def read_keys(path: Path | None, variable: str | None) -> tuple[str, ...]:
    """The keys in a file, one a line, and the one in an environment variable's value."""
    lines = Path(path).read_text(encoding="utf-8").splitlines() if path else []
    keys = [line.strip() for line in [*lines, variable or ""] if line.strip() and not line.lstrip().startswith("#")]
    if path and not keys:
        raise InputError(f"{path} holds no key, expected one a line")
    for key in keys:
        if len(key) < MIN_KEY_LEN or not (key.isascii() and key.isprintable()) or " " in key:
            raise InputError(
                f"given a key of {len(key)} characters, expected {MIN_KEY_LEN} or more ASCII characters without spaces"
            )
    return tuple(keys)
