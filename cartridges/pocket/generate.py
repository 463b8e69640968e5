"""Replies to many messages about one text, as plain text; the engine reads the text once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cartridges.engine.request import Request

if TYPE_CHECKING:
    from cartridges.engine.engine import Engine

CUT = " [cut]"  # behind a reply that did not end by itself


def generate(
    engine: "Engine",
    system: str,
    messages: Sequence[str],
    max_new_tokens: int = 160,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """The model's replies to each of `messages`, each alone behind the `system` text (none if empty).

    Greedy at temperature 0, else sampled with `seed`. A reply that does not end within `max_new_tokens` ends in CUT.
    """
    chat = engine.model.chat
    head = [{"role": "system", "content": system}] if system else []
    shared_len = len(chat.system_prefix(system)) if system else 0
    requests = [
        Request(
            tuple(chat.prompt([*head, {"role": "user", "content": message}])),
            max_new_tokens,
            temperature,
            seed=seed * 1_000_003 + number,
            shared_len=shared_len,
        )
        for number, message in enumerate(messages)
    ]
    results = engine.generate(requests)
    return [result.text + CUT if result.finish_reason == "length" else result.text for result in results]
