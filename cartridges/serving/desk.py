"""Between the server's event loop and the engine's thread: what is asked becomes engine requests, events come back.

The number of replies in work is bounded here; one counts until the engine is done with it, however slow its reader is.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cartridges.engine.request import Event, Request, Result
from cartridges.errors import CartridgesError, unknown_name
from cartridges.serving.errors import ApiError
from cartridges.serving.mailbox import Mailbox
from cartridges.serving.metrics import Metrics
from cartridges.serving.schema import Sampling
from cartridges.serving.settings import ServeConfig
from cartridges.serving.tokens import TokenTexts
from cartridges.template import ChatFormat

if TYPE_CHECKING:
    from cartridges.cartridge import Cartridge
    from cartridges.engine.engine import Engine
    from cartridges.engine.handle import Handle

NO_RESULT_S = 30.0
Made = TypeVar("Made")


@dataclass(frozen=True)
class Prepared:
    """A request as the engine takes it: for each prompt `num_choices` replies."""

    requests: tuple[Request, ...]
    num_choices: int
    num_slots: int


class Desk:
    """Takes requests in and hands replies out. Everything but what `work` runs belongs to the event loop."""

    def __init__(self, engine: "Engine", config: ServeConfig, metrics: Metrics) -> None:
        self.engine, self.config, self.metrics = engine, config, metrics
        self.texts = TokenTexts(engine.model.tokenizer)
        self.num_open = 0
        self.draining = False
        self._thinking: ChatFormat | None = None
        self._mailbox: Mailbox | None = None
        self._workers = ThreadPoolExecutor(2, "serving")
        self._composing: asyncio.Lock | None = None

    @property
    def base(self) -> str:
        """The name of the model without a cartridge."""
        return self.engine.model.identity.model_id

    def chat_format(self, thinking: bool) -> ChatFormat:
        """How messages become token ids."""
        chat = self.engine.model.chat
        if not thinking:
            return chat
        if self._thinking is None:
            self._thinking = ChatFormat(chat.tokenizer, thinking=True, now=chat.now)
        return self._thinking

    def mailbox(self) -> Mailbox:
        """Through which the engine's thread reaches the loop that runs."""
        loop = asyncio.get_running_loop()
        if self._mailbox is None or self._mailbox.loop is not loop:
            self._mailbox, self._composing = Mailbox(loop), asyncio.Lock()
        return self._mailbox

    async def work(self, call: Callable[[], Made]) -> Made:
        """The result of a call that takes its time, and has no tensors to calculate with."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, call)

    def apart(self, call: Callable[[], Made]) -> asyncio.Future[Made]:
        """The result of a call that calculates, in a thread that ends: its OpenMP pool would slow the engine's."""
        pool = ThreadPoolExecutor(1, "apart")
        made = asyncio.get_running_loop().run_in_executor(pool, call)
        pool.shutdown(wait=False)
        return made

    @contextmanager
    def counted(self, num_replies: int) -> Iterator[None]:
        """So many replies count as open, before the engine has them. Raises ApiError where they are too many."""
        self.check_queue(num_replies)
        self.num_open += num_replies
        try:
            yield
        finally:
            self.num_open -= num_replies

    async def cartridge_of(self, names: Sequence[str]) -> "Cartridge | None":
        """The cartridge of these names. Raises ApiError where that takes too long.

        Several are composed one at a time, however many ask.
        """
        if not names:
            return None
        if (ready := self.engine.shelf.ready(names)) is not None:
            return ready
        try:
            async with asyncio.timeout(self.config.reply_s):
                return await self._composed(names)
        except TimeoutError:
            raise self.too_late() from None

    async def _composed(self, names: Sequence[str]) -> "Cartridge":
        self.mailbox()
        assert self._composing is not None
        async with self._composing:
            if self.draining:
                raise self.closing_down()
            if (ready := self.engine.shelf.ready(names)) is not None:  # made for others meanwhile
                return ready
            made = self.apart(lambda: self.engine.shelf.get(names))
            try:
                return await asyncio.shield(made)
            except asyncio.CancelledError:  # the client has left, or waited too long; its turn ends with its thread
                await asyncio.wait([made])
                raise

    def names_of(self, asked: Sampling) -> list[str]:
        """Which cartridges are meant by the model's name and the field `cartridges`."""
        names = [] if asked.model == self.base else asked.model.split("+")
        if asked.names:
            if names:
                raise ApiError(
                    f"given the model {asked.model[:80]!r} and cartridges, expected the model {self.base!r} with them",
                    "cartridges",
                )
            names = asked.names
        self.check_names(names, in_field=bool(asked.names))
        return names

    def check_names(self, names: Sequence[str], in_field: bool) -> None:
        """Raises ApiError for names that cannot be asked together; `in_field` where they are not the model's name."""
        if len(names) > self.config.max_composed:
            raise ApiError(f"given {len(names)} cartridges, expected at most {self.config.max_composed}", "cartridges")
        known = self.engine.shelf.names()
        for name in names:
            if name not in known:
                raise ApiError(
                    unknown_name(
                        "cartridge" if in_field else "model", name[:128], known if in_field else [self.base, *known]
                    ),
                    "cartridges" if in_field else "model",
                    "cartridge_not_found" if in_field else "model_not_found",
                    404,
                )
        if len(set(names)) < len(names):
            raise ApiError("given a cartridge twice, expected different ones", "cartridges")

    async def prepare(
        self, asked: Sampling, prompts: Callable[[], list[list[int]]], default_temperature: float
    ) -> Prepared:
        """The engine's requests. `prompts` makes the token ids, in another thread. Raises ApiError."""
        names, num_choices = self.names_of(asked), asked.n or 1
        num_logprobs = asked.num_logprobs
        if (num_logprobs or 0) > self.config.max_logprobs:
            param = "top_logprobs" if "top_logprobs" in type(asked).model_fields else "logprobs"
            raise ApiError(f"given {param}={num_logprobs}, expected at most {self.config.max_logprobs}", param)
        if num_choices > self.config.max_choices:
            raise ApiError(f"given n={num_choices}, expected at most {self.config.max_choices}", "n")
        num_replies = asked.num_prompts * num_choices
        if num_replies > self.config.max_choices:
            raise ApiError(
                f"given {asked.num_prompts} prompts with n={num_choices}, "
                f"expected at most {self.config.max_choices} replies",
                "n",
            )
        with self.counted(num_replies):
            ids = await self.work(prompts)
            cartridge = await self.cartridge_of(names)
        seed = secrets.randbits(62) if asked.seed is None else asked.seed & (2**63 - 1)
        # a given seed makes a prompt's replies what they are alone; else no two replies draw alike
        seeds_apart = num_choices if asked.seed is None else 0
        temperature = default_temperature if asked.temperature is None else asked.temperature
        requests = [
            Request(
                tuple(prompt),
                self._num_new(asked, prompt, cartridge),
                temperature,
                (seed + place * seeds_apart + choice) & (2**63 - 1),
                top_k_logprobs=min(num_logprobs or 0, self.engine.model.identity.vocab_size),
                shared_len=len(prompt) if num_choices > 1 else 0,
                cartridge=cartridge,
                stop_ids=frozenset() if asked.ignore_eos else None,
                top_p=1.0 if asked.top_p is None else asked.top_p,
                top_k=max(0, asked.top_k or 0),
                stop=asked.stops,
            )
            for place, prompt in enumerate(ids)
            for choice in range(num_choices)
        ]
        return Prepared(tuple(requests), num_choices, cartridge.num_slots if cartridge else 0)

    def _num_new(self, asked: Sampling, prompt: Sequence[int], cartridge: "Cartridge | None") -> int:
        """How many tokens a reply may have. Raises ApiError where they do not fit the window."""
        num_slots, window = cartridge.num_slots if cartridge else 0, self.engine.model.window
        room = window - num_slots - len(prompt)
        usual = asked.usual_tokens or self.config.default_max_tokens
        num_new = asked.new_tokens or max(1, min(usual, room, self.engine.most_new(len(prompt), num_slots)))
        if num_new > room:
            raise ApiError(
                f"given {len(prompt)} prompt tokens behind {num_slots} slots, and {num_new} new tokens: "
                f"{len(prompt) + num_slots + num_new} in all, expected at most {window}, the window of {self.base}; "
                "give a shorter prompt or fewer new tokens",
                "max_tokens" if room > 0 else None,
                "context_length_exceeded",
            )
        return num_new

    def open(self, prepared: Prepared, whole: bool) -> "Replies":
        """Hand the requests in. Raises ApiError where too much is asked at once, CartridgesError for a bad request."""
        self.check_queue(len(prepared.requests))
        return Replies(self, prepared, whole)

    def check_queue(self, wanted: int) -> None:
        """Raises ApiError where so many replies more are too many, or too late."""
        if self.draining:
            raise self.closing_down()
        if self.num_open + wanted > self.config.max_replies:
            self.metrics.refused.inc()
            raise ApiError(
                f"{self.num_open} replies are in work and {wanted} more are asked for, expected at most "
                f"{self.config.max_replies}; try again later",
                None,
                "queue_full",
                429,
                {"Retry-After": str(self.config.retry_after_s)},
            )

    def too_late(self) -> ApiError:
        """What is said to those who have waited too long."""
        return ApiError(f"no reply within {self.config.reply_s:g} seconds", None, "timeout", 504)

    def closing_down(self) -> ApiError:
        """What is said to those who come too late."""
        headers = {"Retry-After": str(self.config.retry_after_s), "Connection": "close"}
        return ApiError("the server is shutting down", None, "shutting_down", 503, headers)

    def close(self) -> None:
        """End the threads."""
        self._workers.shutdown(wait=False, cancel_futures=True)


class Replies:
    """Replies that are being written, to one request."""

    def __init__(self, desk: Desk, prepared: Prepared, whole: bool) -> None:
        """`whole` skips the events between the first and the last of a reply."""
        self.desk, self.prepared, self.whole = desk, prepared, whole
        self.began, self.told_first, self.aborted = time.monotonic(), False, False
        self.running = 0
        self._mailbox = desk.mailbox()
        self._events: dict[int, list[Event]] = {}  # that were not taken yet, by the number of the reply
        self._news = asyncio.Event()
        self._handles: list[Handle] = []
        try:
            for index, request in enumerate(prepared.requests):
                self._handles.append(desk.engine.submit(request, self._listener(index)))
                self.running += 1
                desk.num_open += 1
        except CartridgesError:
            self.abort()
            raise

    def _listener(self, index: int) -> Callable[[Event], None]:
        """Called on the engine's thread; what it passes on is taken on the loop's."""
        started = False

        def tell(event: Event) -> None:
            nonlocal started
            if started and self.whole and event.finish_reason is None:
                return
            started = True
            self._mailbox.post(self._take, index, event)

        return tell

    def _take(self, index: int, event: Event) -> None:
        if event.token_ids and not self.told_first:
            self.told_first = True
            self.desk.metrics.first_token_s.observe(time.monotonic() - self.began)
        if event.finish_reason:
            self.running -= 1
            self.desk.num_open -= 1
            self.desk.metrics.replies.labels(event.finish_reason).inc()
        self._events.setdefault(index, []).append(event)
        self._news.set()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """What is new, by the number of the reply, until all have ended: all that came since it was last asked at once.

        Raises ApiError where the engine failed, where it takes too long, and where the server shuts down.
        """
        open_replies = len(self._handles)
        while open_replies:
            await self._news_by(self.began + self.desk.config.reply_s)
            index = next(iter(self._events))
            event = Event.of(self._events.pop(index))
            if event.finish_reason == "error":
                self.abort()
                raise ApiError(f"the engine failed: {event.error}", None, "engine_error", 500)
            if event.finish_reason == "abort":
                self.abort()
                raise self.desk.closing_down()
            open_replies -= event.finish_reason is not None
            yield index, event

    async def _news_by(self, deadline: float) -> None:
        """Wait until there are events. Raises ApiError where that takes too long."""
        left = deadline - time.monotonic()
        try:
            if not self._events or left <= 0:
                self._news.clear()
                async with asyncio.timeout(left):
                    await self._news.wait()
        except TimeoutError:
            self.abort()
            raise self.desk.too_late() from None

    async def results(self) -> list[Result]:
        """The results of replies that have ended."""
        by = time.monotonic() + NO_RESULT_S
        while not all(handle.done for handle in self._handles):  # the last event may come just before
            if time.monotonic() > by:
                raise ApiError("the engine ended a reply without a result", None, "engine_error", 500)
            await asyncio.sleep(0.001)
        return [handle.result(0) for handle in self._handles]

    def abort(self) -> None:
        """End what still runs; nothing where nothing does."""
        self.aborted = True
        for handle in self._handles:
            handle.abort()
