"""Prefixes that were read before: a cartridge's slots, token ids, or ids behind slots. The least used are let go."""

from collections import OrderedDict
from typing import TYPE_CHECKING

from cartridges.engine.rows import Prefix
from cartridges.engine.runner import Runner

if TYPE_CHECKING:
    from cartridges.cartridge import Cartridge

PrefixKey = tuple[str, tuple[int, ...]]


def prefix_key(cartridge: "Cartridge | None", ids: tuple[int, ...]) -> PrefixKey:
    """What a prefix is known by. A cartridge that has no digest yet is known for as long as it lives."""
    if cartridge is None:
        return "", ids
    return cartridge.digest or f"without digest, at {id(cartridge)}", ids


class Prefixes:
    """Prefixes by cartridge and ids, at most `max_bytes` of them."""

    def __init__(self, runner: Runner, max_bytes: int) -> None:
        self.runner = runner
        self.max_bytes = max_bytes
        self.held: OrderedDict[PrefixKey, Prefix] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        return sum(prefix.num_bytes for prefix in self.held.values())

    def get(self, cartridge: "Cartridge | None", ids: tuple[int, ...]) -> tuple[Prefix, bool]:
        """The prefix of `cartridge` and `ids`, either of which may be none, and whether it was there already."""
        key = prefix_key(cartridge, ids)
        if key in self.held:
            self.held.move_to_end(key)
            return self.held[key], True
        if ids:
            prefix = self.runner.lengthen(self.get(cartridge, ())[0], ids)
        elif cartridge is not None:
            model = self.runner.model
            whole = cartridge.to(model.device, model.dtype)
            prefix = Prefix([keys.detach() for keys in whole.keys], [values.detach() for values in whole.values])
        else:
            return Prefix(), True
        if cartridge is None or cartridge.digest:  # without a digest, nothing would tell of a change in its slots
            self._hold(key, prefix)
        return prefix, False

    def _hold(self, key: PrefixKey, prefix: Prefix) -> None:
        if prefix.num_bytes > self.max_bytes:
            return
        self.held[key] = prefix
        while self.num_bytes > self.max_bytes:
            self.held.popitem(last=False)
