"""A server on a free port of this machine, in a thread, on a tiny random model with cartridges."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

from cartridges.cartridge import Cartridge
from cartridges.engine.engine import Engine
from cartridges.serving.address import listen
from cartridges.serving.server import Server, create_app
from cartridges.serving.settings import Keys, ServeConfig

API_KEY, ADMIN_KEY = "sk-for-the-tests", "sk-for-the-admin"


class Running:
    """A server that answers at `url`."""

    def __init__(self, engine: Engine, keys: Keys, roots: tuple[Path, ...], limits: dict):
        self.engine = engine
        config = ServeConfig.resolve(values={"port": 0, **limits})
        self.app = create_app(engine, config, keys, roots)
        self.desk = self.app.state.desk
        self.ready = threading.Event()
        self.server = Server(self.app, config, self.ready.set)
        self.listener = listen(config.host, config.port)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],), daemon=True)
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def start(self):
        self.thread.start()
        assert self.ready.wait(30), "the server did not start"
        return self

    def stop(self, wait_s: float = 60):
        self.client.close()
        self.server.should_exit = True
        self.thread.join(wait_s)
        assert not self.thread.is_alive(), "the server did not end"

    def post(self, path: str, body, **options) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def chat(self, text="How many beds?", **fields) -> httpx.Response:
        body = {"model": self.desk.base, "messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}
        return self.post("/v1/chat/completions", {key: value for key, value in body.items() if value != "absent"})

    def is_idle(self) -> bool:
        """Nothing is in work, and nothing is kept for requests that are gone."""
        stats = self.engine.stats()
        return self.desk.num_open == 0 and stats.num_running == 0 and stats.num_waiting == 0

    @property
    def num_taken(self) -> int:
        """Replies that the engine has; the desk counts those whose prompts are being read, too."""
        stats = self.engine.stats()
        return stats.num_running + stats.num_waiting

    def settle(self, wait_s: float = 30) -> None:
        """Wait until nothing is in work, and prove that nothing leaked."""
        by = time.monotonic() + wait_s
        while not self.is_idle():
            assert time.monotonic() < by, f"still in work: {self.desk.num_open} open, {self.engine.stats()}"
            time.sleep(0.01)
        if hasattr(self.engine, "check"):
            self.engine.check()


@contextmanager
def running(model, cartridges=(), keys=None, roots=(), **limits):
    """A server, until the end of the block."""
    engine = Engine(model, limits.get("kv_tokens_total"))
    for name, cartridge in dict(cartridges).items():
        engine.shelf.add(name, cartridge)
    server = Running(engine, keys or Keys(), tuple(roots), limits).start()
    try:
        yield server
    finally:
        server.stop()


def error_of(response: httpx.Response, status: int = 400) -> dict:
    """The error, which has exactly the four fields of the OpenAI API."""
    assert response.status_code == status, (response.status_code, response.text[:300])
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}, body
    assert body["error"]["message"] and "\n" not in body["error"]["message"]
    return body["error"]


def events_of(response: httpx.Response) -> list:
    """What a stream sent, its end left out."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def raw_request(port: int, head: str, body: bytes = b"") -> socket.socket:
    """A connection on which a request was written by hand."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n" + body)
    return connection


def slots_of(server: Running, name: str) -> Cartridge:
    return server.engine.shelf.get([name])
