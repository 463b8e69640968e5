"""Several servers of one model as one: who is asked next, how often, how long it is waited for, what it cost.

A request with a key goes where requests with that key went before, so that their common prefix is read once; a new key,
and a request without one, to the least busy server that answers, in turn where several are. A server that fails is left
alone for a while, and its requests go to the others; each has one place among the results, so nothing is lost or
doubled. No server has more than `max_running` requests of ours at a time.
"""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field

from cartridges.config import Config
from cartridges.errors import InputError
from cartridges.ledger import Ledger

if TYPE_CHECKING:
    import httpx

BUSY = (408, 425, 429, 503)  # the server is well, and cannot answer now
BROKEN = (502, 504)  # what stands before a server says that there is none
MAX_KEYS = 4096
MAX_SAID = 300  # characters shown of what a server says


class PoolConfig(Config):
    """How patient a pool is. Times are seconds; they double from one attempt to the next, up to their limit."""

    max_running: int = Field(default=64, gt=0, description="requests at a server at a time")
    max_attempts: int = Field(default=8, gt=0, description="for one request, and to reach a server that is down")
    connect_s: float = Field(default=10.0, gt=0, description="for a server to take a connection")
    reply_s: float = Field(default=300.0, gt=0, description="for the first attempt at a reply")
    max_reply_s: float = Field(default=3600.0, gt=0)
    wait_s: float = Field(default=0.5, gt=0, description="between attempts, and that a failed server is left alone")
    max_wait_s: float = Field(default=30.0, gt=0)


@dataclass
class Replica:
    """One server: how it does, and what it did."""

    url: str
    num_running: int = 0
    num_failures: int = 0  # since the last answer
    down_until: float = 0.0
    num_requests: int = 0
    num_retries: int = 0
    num_tokens_read: int = 0
    num_tokens_written: int = 0
    seconds: float = 0.0  # in which it had work
    last_error: str = ""
    started: float = field(default=0.0, repr=False)

    def begin(self) -> None:
        """Count a request in."""
        if not self.num_running:
            self.started = time.monotonic()
        self.num_running += 1

    def end(self) -> None:
        """Count it out."""
        self.num_running -= 1
        if not self.num_running:
            self.seconds += time.monotonic() - self.started

    def fail(self, pause_s: float) -> None:
        """Leave it alone for a while. What else fails in that time tells nothing new."""
        if time.monotonic() >= self.down_until:
            self.num_failures += 1
            self.down_until = time.monotonic() + pause_s

    def takes(self, max_running: int) -> bool:
        """Whether it can be given a request now. One that failed is tried with a single one first."""
        limit = 1 if self.num_failures else max_running
        return self.num_running < limit and time.monotonic() >= self.down_until


class Unanswered(Exception):
    """An attempt that another may mend. `wait_s` is what the server asks for."""

    def __init__(self, said: str, is_down: bool, wait_s: float = 0.0) -> None:
        super().__init__(said)
        self.is_down, self.wait_s = is_down, wait_s


class Pool:
    """The servers at `urls`. `post` within `open`, as often as one likes at a time."""

    def __init__(self, urls: Sequence[str], config: PoolConfig | None = None, api_key: str = "") -> None:
        if not urls:
            raise InputError("given no URL of a server, expected at least one")
        self.config = config or PoolConfig.resolve()
        self.replicas = [Replica(url) for url in dict.fromkeys(map(base_url, urls))]
        self.api_key = api_key
        self.places: OrderedDict[Hashable, Replica] = OrderedDict()
        self._next = 0

    @asynccontextmanager
    async def open(self) -> "AsyncIterator[httpx.AsyncClient]":
        """Connections for a while; a pool may be opened again, meanwhile or in another event loop too."""
        import httpx

        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.config.max_running)
        async with httpx.AsyncClient(headers=headers, limits=limits) as client:
            yield client

    async def post(
        self, client: "httpx.AsyncClient", path: str, body: dict[str, Any], key: Hashable = None
    ) -> tuple[Any, Replica]:
        """The JSON that a server answers, and which one it was.

        Raises InputError where a server refuses the request, or where none answers it.
        """
        config = self.config
        attempt, failed = 0, None
        while True:
            replica = await self._take(key, failed)
            timeout_s = min(config.reply_s * 2**attempt, config.max_reply_s)
            try:
                answer = await self._ask(client, replica, path, body, timeout_s)
                replica.num_failures = 0
                replica.num_requests += 1
                return answer, replica
            except Unanswered as failure:
                said, is_down, wait_s = str(failure), failure.is_down, failure.wait_s
            finally:
                replica.end()
            attempt, failed = attempt + 1, replica
            replica.num_retries += 1
            replica.last_error = said
            if is_down:
                replica.fail(max(wait_s, self._pause(replica.num_failures)))
                self._forget(replica)
            elif self.places.get(key) is replica:  # let another one try
                del self.places[key]
            given_up = all(other.num_failures >= config.max_attempts for other in self.replicas)
            if given_up or attempt >= config.max_attempts:
                raise InputError(
                    f"no answer after {attempt} attempts at {len(self.replicas)} server(s); the last: {replica.url}: "
                    f"{said}; see that they run and are reached from here, then give the same command again"
                )
            if not is_down:
                await asyncio.sleep(max(wait_s, self._pause(attempt - 1)))

    def _pause(self, num_before: int) -> float:
        """A time that grows, not the same for all who wait."""
        longest = min(self.config.max_wait_s, self.config.wait_s * 2 ** min(num_before, 30))
        return random.uniform(longest / 2, longest)

    async def _take(self, key: Hashable, failed: Replica | None = None) -> Replica:
        """A server that takes a request now, counted in; waits for one. One that `failed` it is the last choice."""
        while True:
            replica = self._choose(key, failed)
            if replica is not None:
                replica.begin()
                return replica
            await asyncio.sleep(0.005)

    def _choose(self, key: Hashable, failed: Replica | None = None) -> Replica | None:
        """Where the key's requests go, as long as that server is well; else the least busy, in turn."""
        max_running = self.config.max_running
        held = self.places.get(key) if key is not None else None
        if held is not None and not held.num_failures:
            self.places.move_to_end(key)
            return held if held.takes(max_running) else None
        turned = [*self.replicas[self._next :], *self.replicas[: self._next]]
        free = [replica for replica in turned if replica.takes(max_running)]
        if not free:
            return None
        chosen = min(free, key=lambda one: (one is failed, one.num_failures > 0, one.num_running))
        self._next = (self.replicas.index(chosen) + 1) % len(self.replicas)
        if key is not None:
            self.places[key] = chosen
            if len(self.places) > MAX_KEYS:
                self.places.popitem(last=False)
        return chosen

    def _forget(self, replica: Replica) -> None:
        """Let the keys of a server that failed find another one."""
        for key in [key for key, held in self.places.items() if held is replica]:
            del self.places[key]

    async def _ask(
        self, client: "httpx.AsyncClient", replica: Replica, path: str, body: dict[str, Any], timeout_s: float
    ) -> Any:
        import httpx

        timeout = httpx.Timeout(timeout_s, connect=self.config.connect_s, pool=None)
        try:
            answer = await client.post(replica.url + path, json=body, timeout=timeout)
        except httpx.TimeoutException as error:
            is_down = isinstance(error, httpx.ConnectTimeout)
            raise Unanswered(f"no answer within {timeout_s:.0f} s ({type(error).__name__})", is_down) from error
        except httpx.TransportError as error:
            raise Unanswered(f"{type(error).__name__} {error}".strip(), is_down=True) from error
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            raise InputError(f"{replica.url} cannot be asked ({type(error).__name__}: {error})") from error
        if answer.status_code in BUSY:
            wait_s = retry_after(answer.headers.get("retry-after", ""), self.config.max_wait_s)
            raise Unanswered(f"{answer.status_code} {said_by(answer)}", is_down=False, wait_s=wait_s)
        if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise Unanswered(f"{answer.status_code} {said_by(answer)}", is_down=answer.status_code in BROKEN)
        if answer.status_code != httpx.codes.OK:
            raise InputError(f"{replica.url}{path} refused a request ({answer.status_code}): {said_by(answer)}")
        try:
            return answer.json()
        except (ValueError, RecursionError) as error:
            raise InputError(f"{replica.url}{path} answered what is no JSON; is it the right server?") from error

    def ledger(self) -> Ledger:
        """What each server read and wrote, and in how many seconds."""
        return Ledger(
            [(f"answers of {r.url}", r.num_tokens_read, r.num_tokens_written, r.seconds) for r in self.replicas]
        )

    def lines(self) -> list[str]:
        """A line a server, for people."""
        found = []
        for r in self.replicas:
            line = f"{r.url}: {r.num_requests} replies, {r.num_tokens_read} tokens read, {r.num_tokens_written} written"
            in_vain = f"; {r.num_retries} attempts in vain, the last: {r.last_error}" if r.num_retries else ""
            found.append(f"{line} in {r.seconds:.1f} s{in_vain}")
        return found


def base_url(url: str) -> str:
    """The URL of a server, without the `/v1` that clients of OpenAI write. Raises InputError for what is none."""
    found = url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    if not found.startswith(("http://", "https://")) or found in ("http:", "https:"):
        raise InputError(f"given the URL {url!r}, expected one such as http://127.0.0.1:8000")
    return found


def retry_after(text: str, at_most_s: float) -> float:
    """The seconds that a server asks to wait; 0 where it names none."""
    try:
        return min(max(0.0, float(text)), at_most_s)
    except ValueError:
        return 0.0


def said_by(answer: "httpx.Response") -> str:
    """The message in an answer that is no success, in one line."""
    try:
        content = answer.json()
        found = content.get("error", content) if isinstance(content, dict) else content
        said = found.get("message", found) if isinstance(found, dict) else found
        said = content["detail"] if isinstance(content, dict) and "detail" in content and said is content else said
    except ValueError:
        said = answer.text
    return " ".join(str(said).split())[:MAX_SAID]
