"""Two servers for the same requests: `cartridges serve` with its own engine, and with stock vLLM, on the CPU.

    .venv-vllm/bin/python benchmarks/serving_vllm.py           # pocket, minutes; writes results/serving_vllm.json
    .venv-vllm/bin/python benchmarks/serving_vllm.py --quick   # to see that it works; most of it is vLLM's start

Many completions at once over HTTP, streamed, greedy, all of one length: behind one shared cartridge, behind four, and
without any. Both servers run in the same environment, are asked by the same client, and get the same token ids.
Prompts are new in every repetition, so that neither server has read them; the first repetition warms up and does not
count, so that cartridges are loaded. The share of equal tokens is that of the timed replies themselves.

Both servers are alive all the time and take turns, so that whatever else the machine does meets them alike. That is
fair only while the one that is not asked leaves the cores alone. vLLM's processes wait in a loop that takes a core for
about a second after their last request, and then sleep; so nobody is asked for `--rest-s` seconds after each turn, and
`idle_cores` tells what each server still took behind such a rest, the most of all settings. `--alone` starts one server
after the other instead, which costs them the turns.

Where this is unfair:

- to vLLM: it is made for GPUs and large models. With a model of a few million parameters most of a step is its
  scheduler and the passing of messages between its processes, which a large model would not notice.
- to vLLM: it has processes of their own for HTTP, the engine and the worker, which share few cores here.
- to vLLM: cartridges reach it through its KV connector, as a copy into each request's blocks or through its prefix
  cache; the engine here reads a cartridge where it lies, once for all rows. Without a cartridge neither has that.
- to the engine here: vLLM is compiled code with kernels of its own for attention and, unless `--eager` is given, a
  compiled model; the engine here is Python and torch's operations, one after the other.
- to both: the client takes time from the same cores, the same for each token. Events are only read when all is over.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

if importlib.util.find_spec("vllm") is None:
    print(
        f"error: vLLM, with which this compares, is not installed in {sys.executable}; make test-vllm makes an "
        "environment with it: .venv-vllm/bin/python benchmarks/serving_vllm.py",
        file=sys.stderr,
    )
    sys.exit(2)

import httpx
import torch
from serving_requests import PROMPT_LEN, random_ids

from cartridges.corpus import Corpus
from cartridges.errors import CartridgesError
from cartridges.initialization import InitializeConfig, initialize
from cartridges.log import progress
from cartridges.model import Model, load_model
from cartridges.pocket import WARD
from cartridges.provenance import package_version, provenance

RESULT = Path(__file__).parent / "results" / "serving_vllm.json"
OURS, THEIRS = "engine", "vLLM"
NUM_CARTRIDGES = 4
STARTUP_S, END_S = 600, 90
CLOCK = os.sysconf("SC_CLK_TCK")


@dataclass
class Reply:
    """The new ids, and seconds from the moment at which all were asked: to its first event, and to its end."""

    token_ids: list[int]
    first_s: float
    end_s: float


@dataclass
class Server:
    """One that answers at `url`, and the process that was started."""

    name: str
    url: str
    process: "subprocess.Popen[bytes]"
    startup_s: float = 0.0

    def cpu_s(self) -> float:
        """Processor time so far of the process and all that it started."""
        pids, ticks = [self.process.pid], 0
        while pids:
            pid = pids.pop()
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                pids += [
                    int(child) for task in Path(f"/proc/{pid}/task").iterdir()
                    for child in (task / "children").read_text().split()
                ]  # fmt: skip
            except OSError:  # it has ended
                continue
            ticks += int(fields[11]) + int(fields[12])
        return ticks / CLOCK


@contextmanager
def started(name: str, model: str, folders: dict[str, Path], log: Path, extra: Sequence[str]) -> Iterator[Server]:
    """A server, once it answers. Raises CartridgesError where it ends before, or never does."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    named = [f"{cartridge}={folder}" for cartridge, folder in folders.items()]
    command = [sys.executable, "-m", "cartridges", "serve", *named, "--model", model, "--port", str(port), *extra]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"} | os.environ
    began = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    server = Server(name, f"http://127.0.0.1:{port}", process)
    try:
        while not answers(server.url):
            if process.poll() is not None or time.monotonic() - began > STARTUP_S:
                said = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
                raise CartridgesError(f"the server of {name} did not start; it said at last: {said[-1][:400]}")
            time.sleep(0.25)
        server.startup_s = round(time.monotonic() - began, 1)
        yield server
    finally:
        end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ask the server to end, and then again, at once."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                continue


def answers(url: str) -> bool:
    """Whether the server says that it is well."""
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


async def ask_all(url: str, names: Sequence[str], prompts: Sequence[Sequence[int]], num_new: int) -> list[Reply]:
    """All prompts at once, each of the model of its name."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=len(prompts))
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        began = time.perf_counter()

        async def ask(name: str, prompt: Sequence[int]) -> tuple[bytes, float, float]:
            body = {"model": name, "prompt": list(prompt), "max_tokens": num_new, "temperature": 0, "stream": True}
            body |= {"ignore_eos": True, "return_token_ids": True}
            parts: list[bytes] = []
            first_s = 0.0
            async with client.stream("POST", "/v1/completions", json=body) as reply:
                async for part in reply.aiter_raw():
                    first_s = first_s or time.perf_counter() - began
                    parts.append(part)
            return b"".join(parts), first_s, time.perf_counter() - began

        told = await asyncio.gather(*(ask(name, prompt) for name, prompt in zip(names, prompts, strict=True)))
    return [Reply(ids_of(raw, num_new), first_s, end_s) for raw, first_s, end_s in told]


def ids_of(raw: bytes, num_new: int) -> list[int]:
    """The ids that a stream told. Raises CartridgesError where there are not `num_new`."""
    found: list[int] = []
    try:
        for line in raw.decode().splitlines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    found += choice.get("token_ids") or []
    except (ValueError, KeyError):
        found = []
    if len(found) != num_new:
        said = raw.decode(errors="replace")[:300]
        raise CartridgesError(f"a reply has {len(found)} tokens, expected {num_new}: {said}")
    return found


def turn(server: Server, model: Model, names: Sequence[str], given: argparse.Namespace, number: int) -> list[Reply]:
    """One repetition of one server; prompts are the same for the same names and number, and for no others."""
    prompts = [random_ids(model, PROMPT_LEN, "http", *names, number, place) for place in range(given.requests)]
    asked = [names[place % len(names)] for place in range(given.requests)]
    return asyncio.run(ask_all(server.url, asked, prompts, given.new_tokens))


def idle(servers: Sequence[Server], seconds: float) -> dict[str, float]:
    """How many cores each server keeps busy while nobody asks."""
    before = [server.cpu_s() for server in servers]
    time.sleep(seconds)
    return {
        server.name: round((server.cpu_s() - start) / seconds, 3) for server, start in zip(servers, before, strict=True)
    }


def measured(servers: Sequence[Server], model: Model, settings: dict[str, list[str]], given: argparse.Namespace) -> Any:
    """What each server did in each setting: replies by repetition, and cores that it kept busy without a question."""
    found: dict[str, dict[str, list[list[Reply]]]] = {}
    busy: dict[str, list[float]] = {server.name: [] for server in servers}
    with progress("asking", len(settings) * (given.repetitions + 1)) as bar:
        for setting, names in settings.items():
            found[setting] = {server.name: [] for server in servers}
            for number in range(given.repetitions + 1):
                for server in servers:
                    replies = turn(server, model, names, given, number)
                    time.sleep(given.rest_s)
                    if number:  # the first one warms up
                        found[setting][server.name].append(replies)
                bar.advance(1, setting)
            for name, cores in idle(servers, given.idle_s).items():
                busy[name].append(cores)
    return found, {name: max(cores) for name, cores in busy.items()}


def row_of(setting: str, num_cartridges: int, found: dict[str, list[list[Reply]]]) -> dict[str, Any]:
    """The figures of a setting."""
    speeds, first_ms = {}, {}
    for name, repetitions in found.items():
        speeds[name] = [
            round(sum(len(reply.token_ids) for reply in replies) / max(reply.end_s for reply in replies), 1)
            for replies in repetitions
        ]
        first_ms[name] = [round(1000 * median(reply.first_s for reply in replies), 1) for replies in repetitions]
    mine, others = ([reply.token_ids for replies in found[name] for reply in replies] for name in (OURS, THEIRS))
    same = [a == b for one, two in zip(mine, others, strict=True) for a, b in zip(one, two, strict=True)]
    return {
        "setting": setting,
        "cartridges": num_cartridges,
        "tokens_per_s": {name: median(each) for name, each in speeds.items()},
        "ratio": round(median(speeds[OURS]) / median(speeds[THEIRS]), 2),
        "first_token_ms": {name: median(each) for name, each in first_ms.items()},
        "equal_tokens": round(sum(same) / len(same), 4),
        "all": {"tokens_per_s": speeds, "first_token_ms": first_ms},
    }


def compare(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start the servers, ask, and give the result."""
    torch.set_num_threads(1)  # cartridges are made here, and nothing else
    model, text = load_model(given.model, "cpu"), Corpus.from_path(WARD / "documents").text
    folders: dict[str, Path] = {}
    for place in range(NUM_CARTRIDGES):
        name = f"part-{place}"
        about = {"kind": "text", "text": text[900 * place :]}
        made = initialize(model, None, given.slots, InitializeConfig.resolve(values=about))
        made.save(folder / name)
        folders[name] = folder / name
    base = model.identity.model_id
    settings = {"one shared cartridge": [*folders][:1], f"{NUM_CARTRIDGES} cartridges": [*folders], "none": [base]}
    vllm = ["--engine", "vllm", *(["--", "--enforce-eager"] if given.eager else [])]
    with ExitStack() as stack:
        servers: list[Server] = []
        found: dict[str, dict[str, list[list[Reply]]]] = {setting: {} for setting in settings}
        idle_cores: dict[str, float] = {}
        for name, extra in ((THEIRS, vllm), (OURS, [])):
            servers.append(stack.enter_context(started(name, given.model, folders, folder / f"{name}.log", extra)))
            if given.alone or name == OURS:
                asked = servers[-1:] if given.alone else servers
                replies, cores = measured(asked, model, settings, given)
                idle_cores |= cores
                found = {setting: found[setting] | replies[setting] for setting in settings}
            if given.alone:
                stack.pop_all().close()
    rows = [
        row_of(setting, 0 if names == [base] else len(names), found[setting]) for setting, names in settings.items()
    ]
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "servers": "alone" if given.alone else "take turns",
        "rest_s": given.rest_s,
        "vllm_arguments": vllm,
        "startup_s": {server.name: server.startup_s for server in servers},
        "idle_cores": idle_cores,
        "rows": rows,
    }


def main() -> int:
    """Measure, print, write; gives the exit code."""
    quick = "--quick" in sys.argv
    parser = argparse.ArgumentParser(description="The server here beside stock vLLM, on the CPU.")
    parser.add_argument("--quick", action="store_true", help="few requests, eager; writes only where --out says")
    parser.add_argument("--model", default="pocket", help="a folder or hub name")
    parser.add_argument("--slots", type=int, default=16 if quick else 128)
    parser.add_argument("--requests", type=int, default=4 if quick else 32, help="at once")
    parser.add_argument("--new-tokens", type=int, default=8 if quick else 64)
    parser.add_argument("--repetitions", type=int, default=1 if quick else 7)
    parser.add_argument("--rest-s", type=float, default=2.0, help="seconds after each turn")
    parser.add_argument("--idle-s", type=float, default=1.0 if quick else 5.0, help="seconds to measure idling")
    parser.add_argument("--eager", action="store_true", default=quick, help="vLLM without compilation")
    parser.add_argument("--alone", action="store_true", help="one server after the other, not both alive")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    try:
        about: dict[str, Any] = provenance()
        about["versions"]["vllm"] = package_version("vllm") or package_version("vllm-cpu")
        asked = {name: getattr(given, name) for name in "model slots requests new_tokens repetitions".split()}
        with tempfile.TemporaryDirectory() as folder:
            result = {**about, **asked, "prompt_tokens": PROMPT_LEN, **compare(given, Path(folder))}
    except (CartridgesError, httpx.HTTPError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2
    for row in result["rows"]:
        speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in row["tokens_per_s"].items())
        first = ", ".join(f"{name} {took:.0f}" for name, took in row["first_token_ms"].items())
        print(f"{row['setting']:22} {speeds} tokens/s, {row['ratio']:.2f}x; first token {first} ms; ", end="")
        print(f"{row['equal_tokens']:.2%} of the tokens equal")
    print(f"cores busy without a question: {result['idle_cores']}; seconds to start: {result['startup_s']}")
    out = given.out or (None if quick else RESULT)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
