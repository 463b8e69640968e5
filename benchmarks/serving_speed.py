"""How fast an engine decodes and how soon it begins, for `serving.py` and `serving_cuda.py`."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from serving_requests import NEVER, PROMPT_LEN, random_cartridge, random_ids

from cartridges.cartridge import Cartridge
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.log import progress
from cartridges.model import Model


def seconds(call: Callable[[], Any], model: Model) -> float:
    """How long it takes."""
    wait = torch.cuda.synchronize if model.device.type == "cuda" else time.perf_counter
    wait()
    started = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - started


def decode_speed(engine: Engine, requests: Sequence[Request]) -> float | None:
    """Tokens/s while all of them are being written: from the last one's first token to the first one's last.

    None where there is no such time.
    """
    told: list[list[float]] = [[] for _ in requests]
    handles = [
        engine.submit(request, lambda event, times=times: times.append(time.perf_counter()))
        for request, times in zip(requests, told, strict=True)
    ]
    for handle in handles:
        handle.result()
    begin, end = max(times[0] for times in told), min(times[-1] for times in told)
    return sum(begin < at <= end for times in told for at in times) / (end - begin) if end > begin else None


def first_tokens(model: Model, num_slots: int, num_text: int, repetitions: int) -> dict[str, float]:
    """Milliseconds to the first token, medians: of a cartridge in several states, and of text."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, progress("first tokens", repetitions) as bar:
        random_cartridge(model, num_slots).save(Path(folder) / "cartridge")
        for number in range(repetitions):
            for name, took in one_of_each(model, Path(folder) / "cartridge", num_text, number).items():
                found.setdefault(name, []).append(1000 * took)
            bar.advance(1)
    return {name: round(median(each), 3) for name, each in found.items()}


def one_of_each(model: Model, folder: Path, num_text: int, number: int) -> dict[str, float]:
    """Seconds to the first token, in an engine of its own that has read nothing of it."""
    engine, found = Engine(model), {}
    text = random_ids(model, min(num_text, model.window - PROMPT_LEN - 1), "text", number)

    def ask(name: str, cartridge: Cartridge | None = None, before: tuple[int, ...] = ()) -> float:
        prompt = before + random_ids(model, PROMPT_LEN, name, number)
        request = Request(prompt, 1, cartridge=cartridge, shared_len=len(before), stop_ids=NEVER)
        return seconds(lambda: engine.submit(request).result(), model)

    ask("warm up")
    started = time.perf_counter()
    cartridge = Cartridge.load(folder)
    load_s = time.perf_counter() - started
    found["cartridge, on disk"] = load_s + ask("disk", cartridge)
    found["cartridge, used before"] = ask("used", cartridge)
    found[f"text of {len(text)} tokens, unread"] = ask("unread", None, text)
    found[f"text of {len(text)} tokens, read before"] = ask("read", None, text)
    found["no context"] = ask("none")
    request = Request(random_ids(model, PROMPT_LEN, "attach", number), 1, cartridge=cartridge, stop_ids=NEVER)
    started = time.perf_counter()
    handle = engine.submit(request)
    found["handing in a request behind a loaded cartridge"] = time.perf_counter() - started
    handle.result()
    engine.close()
    return found
