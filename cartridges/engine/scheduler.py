"""Which requests are read and answered together: those behind the same prefix, of like length, within the limits.

Requests join at the boundaries of batches only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cartridges.engine.prefixes import prefix_key
from cartridges.engine.request import Request

MAX_ROWS = {"cpu": 64, "cuda": 256}


@dataclass(frozen=True)
class Limits:
    """At most `num_rows` rows, and at most `num_tokens` tokens of prefix, prompts and replies, padding included.

    A request that is larger alone runs alone.
    """

    num_rows: int
    num_tokens: int


def schedule(requests: Sequence[Request], limits: Limits) -> list[list[int]]:
    """The numbers of the requests of each batch; each request is in one."""
    groups: dict[object, list[int]] = {}
    for number, request in enumerate(requests):
        key = (prefix_key(request.cartridge, request.prompt_ids[: request.prefix_len]), request.prefix_len)
        groups.setdefault(key, []).append(number)
    return [batch for group in groups.values() for batch in _batches(requests, group, limits)]


def _batches(requests: Sequence[Request], group: list[int], limits: Limits) -> list[list[int]]:
    def own_len(number: int) -> int:
        return len(requests[number].prompt_ids) - requests[number].prefix_len

    prefix_len = requests[group[0]].num_slots + requests[group[0]].prefix_len
    batches: list[list[int]] = []
    longest_reply = 0
    for number in sorted(group, key=own_len):
        longest_reply = max(longest_reply, requests[number].max_new_tokens)
        num_rows = len(batches[-1]) + 1 if batches else 1
        num_tokens = prefix_len + num_rows * (own_len(number) + longest_reply)
        if not batches or num_rows > limits.num_rows or num_tokens > limits.num_tokens:
            batches.append([])
            longest_reply = requests[number].max_new_tokens
        batches[-1].append(number)
    return batches
