"""Many requests at once: our engine beside Hugging Face's `generate` with PEFT's CARTRIDGE, for `serving.py`.

Methods take turns, repetition by repetition, so that whatever else the machine does meets them all alike.
"""

import argparse
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from peft_generate import PeftGenerator
from serving_requests import mixed_requests_of, random_cartridge, requests_of
from serving_speed import seconds

from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.errors import CartridgesError
from cartridges.log import progress
from cartridges.model import Model

OURS, THEIRS = "engine", "generate + PEFT"


def by_cartridge(peft: PeftGenerator, requests: Sequence[Request]) -> list[list[int]]:
    """What PEFT writes: a batch for each cartridge, run to its longest reply, of which each keeps what it wanted."""
    found: list[list[int]] = [[] for _ in requests]
    for cartridge in dict.fromkeys(id(request.cartridge) for request in requests):
        places = [place for place, request in enumerate(requests) if id(request.cartridge) == cartridge]
        batch = [requests[place] for place in places]
        assert batch[0].cartridge is not None
        longest = max(request.max_new_tokens for request in batch)
        replies = peft.generate(batch[0].cartridge, [request.prompt_ids for request in batch], longest)
        for place, reply in zip(places, replies, strict=True):
            found[place] = reply[: requests[place].max_new_tokens]
    return found


def check_same(engine: Engine, peft: PeftGenerator, requests: Sequence[Request]) -> float:
    """The share of equal tokens of both sides. Raises CartridgesError where they differ in float32."""
    mine = [result.token_ids for result in engine.generate(requests)]
    theirs = by_cartridge(peft, requests)
    same = [a == b for one, two in zip(mine, theirs, strict=True) for a, b in zip(one, two, strict=True)]
    equal = sum(same) / len(same)
    if equal < 1 and engine.model.dtype == torch.float32:
        raise CartridgesError(f"both sides should write the same tokens, but only {equal:.0%} are equal")
    return equal


def in_turns(engine: Engine, peft: PeftGenerator, requests: Sequence[Request], repetitions: int, label: str) -> Any:
    """Tokens/s that were wanted, of both sides: the medians, their ratio and all of them."""
    num_wanted = sum(request.max_new_tokens for request in requests)
    calls = ((OURS, lambda: engine.generate(requests)), (THEIRS, lambda: by_cartridge(peft, requests)))
    found: dict[str, list[float]] = {OURS: [], THEIRS: []}
    with progress(label, repetitions + 1) as bar:
        for number in range(repetitions + 1):
            for name, call in calls:
                took = seconds(call, engine.model)
                if number:  # the first one warms up
                    found[name].append(round(num_wanted / took, 1))
            bar.advance(1)
    medians = {name: median(each) for name, each in found.items()}
    return {
        "tokens_per_s": {name: round(each, 1) for name, each in medians.items()},
        "ratio": round(medians[OURS] / medians[THEIRS], 2),
        "all": found,
    }


def concurrent(model: Model, given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each size and number of cartridges; prompts and replies have one length each."""
    rows: list[dict[str, Any]] = []
    for slots in given.slots:
        engine, peft = Engine(model), PeftGenerator(model, slots)
        for num_cartridges in given.cartridges:
            cartridges = [random_cartridge(model, slots, seed) for seed in range(num_cartridges)]
            requests = requests_of(model, cartridges, given.requests, given.new_tokens)
            equal = check_same(engine, peft, requests)
            speeds = in_turns(engine, peft, requests, given.repetitions, f"{num_cartridges} of {slots} slots")
            rows.append({"cartridges": num_cartridges, "slots": slots, "equal_tokens": equal, **speeds})
    return rows


def mixed(model: Model, given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each size: cartridges that are asked unevenly, prompts and replies of many lengths."""
    return [mixed_of(model, slots, given) for slots in given.slots]


def mixed_of(model: Model, slots: int, given: argparse.Namespace) -> dict[str, Any]:
    """One of the rows of `mixed`."""
    engine, peft = Engine(model), PeftGenerator(model, slots)
    cartridges = [random_cartridge(model, slots, seed) for seed in range(given.mixed_cartridges)]
    requests = mixed_requests_of(model, cartridges, given.requests, given.mixed_prompts, given.mixed_replies)
    equal = check_same(engine, peft, requests)
    dealt = [sum(request.cartridge is cartridge for request in requests) for cartridge in cartridges]
    longest = [
        max((request.max_new_tokens for request in requests if request.cartridge is cartridge), default=0)
        for cartridge in cartridges
    ]
    return {
        "cartridges": given.mixed_cartridges,
        "slots": slots,
        "requests_of_each": dealt,
        "prompt_tokens": given.mixed_prompts,
        "new_tokens": given.mixed_replies,
        "wanted_tokens": sum(request.max_new_tokens for request in requests),
        "tokens_of_batches": sum(num * most for num, most in zip(dealt, longest, strict=True)),
        "equal_tokens": equal,
        **in_turns(engine, peft, requests, given.repetitions, f"mixed, {slots} slots"),
    }
