"""A real vLLM with cartridges, started as a user starts it, and what Hugging Face says it should answer."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch
from transformers import DynamicCache

from cartridges.cartridge import Cartridge
from cartridges.model import Model

Reply = tuple[list[int], list[float]]  # token ids and their logprobs
KEY = "a-key-of-the-tests"
PROGRAM = """
import json, sys
from pathlib import Path
from cartridges.serving.launch import serve_vllm
told = json.loads(sys.argv[1])
folders = [(name, Path(folder)) for name, folder in told["folders"].items()]
roots = [Path(root) for root in told["roots"]]
sys.exit(serve_vllm(told["model"], folders, "127.0.0.1", told["port"], told["extra"], roots, told["keys"]))
"""
STARTUP_S = 400  # on a busy machine; 30 on an idle one
TOLERANCE = 1e-4  # of logprobs: float32 on both sides, sums in another order


@dataclass
class Server:
    """A launched server. `log` gets all it says."""

    log: Path
    folders: dict[str, Path]
    roots: list[Path] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    model: str = "pocket"
    environment: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> "Server":
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        told = {
            "model": self.model,
            "folders": {name: str(folder) for name, folder in self.folders.items()},
            "roots": [str(root) for root in self.roots],
            "port": port,
            "keys": [KEY],
            "extra": ["--enforce-eager", *self.extra],
        }
        environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"} | self.environment
        self.file = self.log.open("w")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(told)],
            stdout=self.file, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
        headers = {"Authorization": f"Bearer {KEY}"}
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120)
        try:
            while not self.is_alive():
                assert self.process.poll() is None, self.told()[-3000:]
                assert time.monotonic() - self.started < STARTUP_S, self.told()[-3000:]
                time.sleep(0.5)
        except BaseException:
            self.__exit__()
            raise
        self.startup_s = time.monotonic() - self.started
        print(f"the server was ready after {self.startup_s:.0f} s")
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(180)
        finally:
            if self.process.poll() is None:
                self.process.kill()
            self.http.close()
            self.file.close()

    def told(self) -> str:
        return self.log.read_text(errors="replace")

    def is_alive(self) -> bool:
        try:
            return self.http.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    def models(self) -> list[str]:
        return [model["id"] for model in self.http.get("/v1/models").json()["data"]]

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + "{", name + " ")))

    def post(self, path: str, **body: object) -> httpx.Response:
        return self.http.post(path, json=body)

    def complete(
        self, model: str, prompt_ids: list[int], num_new: int, **more: object
    ) -> tuple[list[int], list[float]]:
        """Greedy ids and their logprobs."""
        body = {"model": model, "prompt": prompt_ids, "max_tokens": num_new, "temperature": 0, "logprobs": 0}
        asked = {"return_tokens_as_token_ids": True, "ignore_eos": True, **more}
        reply = self.post("/v1/completions", **body, **asked)
        assert reply.status_code == 200, reply.text
        logprobs = reply.json()["choices"][0]["logprobs"]
        return [int(token.removeprefix("token_id:")) for token in logprobs["tokens"]], logprobs["token_logprobs"]


@torch.no_grad()
def expected(model: Model, cartridge: Cartridge | None, prompt_ids: list[int], num_new: int) -> Reply:
    """What Hugging Face's own model goes on with, greedily, behind the slots."""
    cache = DynamicCache(config=model.hf.config)
    num_slots = cartridge.num_slots if cartridge else 0
    if cartridge:
        for index, (keys, values) in enumerate(zip(cartridge.keys, cartridge.values, strict=True)):
            cache.update(keys[None].float(), values[None].float(), index)
    ids, position, chosen, logprobs = prompt_ids, num_slots, [], []
    for _ in range(num_new):
        positions = torch.arange(position, position + len(ids))[None]
        logits = model.hf(torch.tensor([ids]), position_ids=positions, past_key_values=cache).logits[0, -1]
        position += len(ids)
        chosen.append(int(logits.argmax()))
        logprobs.append(float(logits.log_softmax(-1)[chosen[-1]]))
        ids = chosen[-1:]
    return chosen, logprobs


def agree(given: Reply, wanted: Reply) -> bool:
    """Tokens are the same, logprobs close."""
    close = all(abs(a - b) <= TOLERANCE for a, b in zip(given[1], wanted[1], strict=True))
    return given[0] == wanted[0] and close
