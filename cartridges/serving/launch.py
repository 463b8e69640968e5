"""Start stock vLLM with cartridges: its command line, the wait until it answers, signals passed on, how it ended.

vLLM runs as a program of its own, in this Python. Its log goes to stderr as it comes.
"""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from transformers import AutoConfig

from cartridges.cartridge import ModelIdentity
from cartridges.errors import CartridgesError, InputError
from cartridges.lora import LoraReport
from cartridges.model import POCKET, load_model
from cartridges.pocket import WEIGHTS
from cartridges.serving.address import listen
from cartridges.serving.catalogue import Catalogue

STARTUP_S = 3600.0  # large models take long to download and to load
POLL_S = 0.25
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can be told
DRAIN_S = 30  # for running requests to finish after SIGTERM
NUM_LINES_KEPT = 400
ERROR_LINE = re.compile(r"(?:^|\s)((?:(?:\w+\.)*\w+(?:Error|Exception)|error): .+)$")
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}


def serve_vllm(
    model: str,
    cartridges: Sequence[tuple[str, Path]],
    host: str,
    port: int,
    extra_args: Sequence[str] = (),
    roots: Sequence[Path] = (),
    api_keys: Sequence[str] = (),
    startup_s: float = STARTUP_S,
) -> int:
    """Serve `model` with named cartridges, and with those that are, or will be, in folders directly below `roots`.

    Returns 0 after SIGINT or SIGTERM. Raises InputError and FormatError for what cannot be served, CartridgesError
    where vLLM is not there or ends by itself.
    """
    if importlib.util.find_spec("vllm") is None:
        raise CartridgesError(
            f"--engine vllm needs vLLM, which {sys.executable} does not have; install this package into vLLM's "
            "environment (docs/vllm.md)"
        )
    if len(api_keys) > 1:
        raise InputError(f"given {len(api_keys)} API keys, expected at most one with --engine vllm")
    identity = identity_of(model)
    catalogue = Catalogue.of(identity, dict(cartridges), roots)
    for name, _ in cartridges:
        if name == identity.model_id:
            raise InputError(f"given a cartridge called {name!r}, like its model; give it another name")
        catalogue.find([name])
    with closing(listen(host or "0.0.0.0", port)) as listener:  # vLLM looks only once it has loaded the model
        port = listener.getsockname()[1]
    source = str(WEIGHTS) if model == POCKET else model
    command = vllm_command(source, identity, catalogue, host, port, extra_args, has_gpu=torch.cuda.is_available())
    environment = {**os.environ, **({"VLLM_API_KEY": api_keys[0]} if api_keys else {})}
    print(f"starting {shlex.join(command)}", file=sys.stderr, flush=True)
    url = f"http://{EVERYWHERE.get(host, f'[{host}]' if ':' in host else host)}:{port}"
    return supervise(command, environment, url, [name for name, _ in cartridges], startup_s)


def lora_arguments(name: str, folder: Path, report: LoraReport) -> list[str]:
    """VLLM's own options for a LoRA that is served as `name`. Raises InputError for what vLLM does not load."""
    if report.has_bias:
        raise InputError(
            f"the adapter {name} has output biases, which vLLM's LoRA does not know; transmute with method=down, or "
            "serve it with --engine own"
        )
    size = next((rank for rank in LORA_RANKS if rank >= report.rank), None)
    if size is None:
        raise InputError(f"the adapter {name} has rank {report.rank}, expected at most {LORA_RANKS[-1]}; give rank=64")
    return ["--enable-lora", "--lora-modules", f"{name}={folder}", "--max-lora-rank", str(size)]


def identity_of(model: str) -> ModelIdentity:
    """Which model vLLM is to serve. It is read once for that, in its own dtype, and let go."""
    source = WEIGHTS if model == POCKET else model
    try:
        own_dtype = AutoConfig.from_pretrained(source).dtype
    except (OSError, ValueError):
        own_dtype = None  # loading it says what is wrong
    return load_model(model, "cpu", str(own_dtype or torch.bfloat16).removeprefix("torch.")).identity


def vllm_command(
    source: str,
    identity: ModelIdentity,
    catalogue: Catalogue,
    host: str,
    port: int,
    extra_args: Sequence[str] = (),
    has_gpu: bool = True,
) -> list[str]:
    """The program and its arguments. `extra_args` come last and win; without a GPU computing is in float32, as here."""
    connector: dict[str, Any] = {
        "kv_connector": "CartridgeConnector",
        "kv_connector_module_path": "cartridges.serving.vllm_connector",
        "kv_role": "kv_consumer",
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": catalogue.to_config(),
    }
    options = {
        "--model": source,
        "--served-model-name": identity.model_id,
        "--host": host,
        "--port": str(port),
        "--middleware": "cartridges.serving.vllm_middleware.CartridgeMiddleware",
        "--shutdown-timeout": str(DRAIN_S),
        "--kv-transfer-config": json.dumps(connector),
    }
    if identity.revision and not Path(source).is_dir():
        options["--revision"] = identity.revision
    if not has_gpu:
        options["--dtype"] = "float32"
    pairs = [text for option, value in options.items() for text in (option, value)]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *pairs, *extra_args]


def supervise(
    command: Sequence[str],
    environment: dict[str, str],
    url: str,
    names: Sequence[str],
    startup_s: float,
) -> int:
    """Run the server until a signal ends it. Raises CartridgesError where it ends by itself, or is never ready."""
    started = time.monotonic()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as server:
        assert server.stdout is not None
        lines: deque[str] = deque(maxlen=NUM_LINES_KEPT)
        teller = threading.Thread(target=_tell, args=(server.stdout, lines), daemon=True)
        teller.start()
        try:
            with _signals_passed_on(server) as asked_to_end:
                while server.poll() is None and not asked_to_end and not is_healthy(url):
                    if time.monotonic() - started > startup_s:
                        raise CartridgesError(f"no answer at {url} after {startup_s:.0f} s; vLLM's log says more")
                    time.sleep(POLL_S)
                if server.poll() is None and not asked_to_end:
                    served = ", ".join(names) or "no cartridge yet"
                    print(f"serving {served} at {url}/v1 after {time.monotonic() - started:.0f} s", flush=True)
                code = server.wait()
                if asked_to_end:
                    return 0
        finally:
            _end_all(server)
    teller.join(timeout=5)
    raise CartridgesError(f"vLLM ended by itself with exit code {code}: {cause_in(lines)}")


def is_healthy(url: str) -> bool:
    """Whether the server at `url` says so."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


def cause_in(lines: Sequence[str]) -> str:
    """The last line of a log that names an error of its own."""
    found = [match[1] for line in lines if (match := ERROR_LINE.search(line.rstrip()))]
    own = [text for text in found if "root cause" not in text]
    return (own or found or ["its log says more"])[-1][:400]


def _tell(source: IO[bytes], lines: deque[str]) -> None:
    for raw in source:
        line = raw.decode("utf-8", "replace")
        lines.append(line)
        sys.stderr.write(line)
        sys.stderr.flush()


@contextmanager
def _signals_passed_on(server: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """SIGINT and SIGTERM reach the server as SIGTERM, the second one at once; the list tells which came."""
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        if len(received) == 1 and server.poll() is None:
            server.terminate()
        else:
            _end_all(server)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_all(server: "subprocess.Popen[bytes]") -> None:
    """End what is left of the server and of the processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
