"""Inference in this process, on an unmodified Hugging Face model, with or without cartridges.

All requests, of whatever call and thread, are answered together, step by step; they may stand behind different
cartridges. What many of them share is read once and kept. A result depends on its request alone, up to rounding:
floating-point sums in other company may differ in the last bits. A call of `generate` gives the same bits each time
where nothing else runs.

Shapes: M target tokens, V vocabulary.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from cartridges.cartridge import Cartridge
from cartridges.engine.batching import Batching, Target
from cartridges.engine.blocks import BLOCK, cost, largest_row
from cartridges.engine.budget import default_kv_tokens
from cartridges.engine.handle import Handle
from cartridges.engine.reply import OnEvent, Reply
from cartridges.engine.request import EngineStats, Event, Request, Result, check, check_target
from cartridges.engine.runner import Runner
from cartridges.engine.scheduler import Sequence as Read
from cartridges.engine.shelf import Shelf
from cartridges.engine.turn import Turn
from cartridges.errors import InputError
from cartridges.model import Model, load_model
from cartridges.sharing import together

NUM_STEPS = 16  # between two looks at who else wants to step
WAIT_S = 0.02

AskedTarget = tuple[Sequence[int], Sequence[int], Cartridge | None, int]


def _any_done(handles: Sequence[Handle]) -> bool:
    return any(handle.done for handle in handles)


def _all_ended(reads: Sequence[Read]) -> bool:
    return all(read.task.ended for read in reads)


class Engine:
    """A model that answers. Threads may share an engine. Whoever waits for something steps for all."""

    def __init__(
        self, model: Model | str | Path, kv_tokens_total: int | None = None, autocast_bf16: bool | None = None
    ) -> None:
        """`model` may be a name or folder to load.

        Keys and values of at most `kv_tokens_total` tokens are held, cartridges included; None is as
        `default_kv_tokens` has it. `autocast_bf16` multiplies in bfloat16 on a CPU; None is as loaded.
        """
        if kv_tokens_total is not None and kv_tokens_total < BLOCK:
            raise InputError(f"given kv_tokens_total={kv_tokens_total}, expected {BLOCK} or more")
        self.model = model if isinstance(model, Model) else load_model(model)
        self.runner = Runner(self.model, bool(autocast_bf16))
        self.batching = Batching(self.runner, kv_tokens_total or default_kv_tokens(self.model))
        self.shelf = Shelf(self.model)
        self._turn = Turn()
        self._starting = threading.Lock()
        self._closing = threading.Lock()  # lest something is handed in that nobody will work on
        self._submitted: dict[Handle, Read] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_closing = False

    def generate(self, requests: Sequence[Request], on_done: Callable[[int], None] | None = None) -> list[Result]:
        """The results, in the order of the requests; `on_done` is called with the number of requests newly finished.

        Raises InputError, before any work, for a request that cannot be answered, FormatError for a cartridge of
        another model; CartridgesError where one fails on the way.
        """
        requests = list(requests)
        for number, request in enumerate(requests):
            self._check(request, f"request {number}")
        reads = [self._add(request) for request in requests]
        pending = [read.task.handle for read in reads]
        try:
            while pending:
                self._step_until(partial(_any_done, pending))
                for handle in pending:
                    if handle.failed:
                        handle.result()
                num_before, pending = len(pending), [handle for handle in pending if not handle.done]
                if on_done and num_before > len(pending):
                    on_done(num_before - len(pending))
        finally:
            self._end(reads)
        return [read.task.handle.result() for read in reads]

    def submit(self, request: Request, on_event: OnEvent | None = None) -> Handle:
        """Hand a request in; `on_event` is called with what is new of its reply, by the thread that steps.

        Raises as `generate` does, at the call. Full blocks of what was read and written are kept for later requests,
        as far as there is room.
        """
        self._check(request, "the request")
        with self._closing:
            if self._is_closing:
                raise InputError("the engine is closing; hand requests in before, or start it anew")
            self.start()
            read = self._add(request, on_event, live=True)
            handle: Handle = read.task.handle
            self._submitted[handle] = read
        self._wake.set()
        return handle

    def start(self) -> None:
        """Have a thread that works on what is handed in; `submit` does so by itself."""
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="engine", daemon=True)
                thread.start()
                self._thread = thread

    @property
    def is_alive(self) -> bool:
        """Whether what is handed in is worked on: false where the thread for it has died."""
        thread = self._thread
        return thread is None or thread.is_alive()

    def close(self, drain_seconds: float = 0.0) -> None:
        """Let requests finish for so long, end the others with "abort", and stop the thread."""
        with self._closing:
            self._is_closing = True
        deadline = time.monotonic() + drain_seconds
        while self._open() and time.monotonic() < deadline:
            time.sleep(WAIT_S)
        self.abort()
        self._wake.set()
        thread = self._thread
        if thread is not None:
            thread.join()
        self._thread, self._is_closing = None, False

    def abort(self) -> None:
        """End all requests that were handed in with "abort"."""
        for handle in self._open():
            handle.abort()

    def _open(self) -> list[Handle]:
        return [handle for handle in list(self._submitted) if not handle.done]

    def _work(self) -> None:
        while True:
            for handle in [handle for handle in list(self._submitted) if handle.done]:
                self._submitted.pop(handle, None)
            if self._submitted:
                self._step_until(lambda: not self._open())
                continue
            if self._is_closing:
                return
            self._wake.wait()
            self._wake.clear()

    def stats(self) -> EngineStats:
        """What the engine does and did."""
        scheduler, counts = self.batching.scheduler, self.batching.counts
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=self.batching.num_waiting,
            num_prompt_tokens=counts.prompt,
            num_new_tokens=counts.new,
            num_cached_tokens=counts.cached,
            num_preemptions=scheduler.num_preemptions,
            kv_tokens_used=scheduler.blocks.total - scheduler.blocks.free,
            kv_tokens_total=scheduler.blocks.total,
            cartridges=self.shelf.names(),
        )

    def check(self) -> None:
        """Prove that free + used + pinned + cached = total, and that every row and run has its users."""
        with self._turn:
            self.batching.scheduler.check()

    def _check(self, request: Request, label: str) -> None:
        check(request, self.model, label)
        self._check_room(request, request.max_new_tokens, label)

    def _check_room(self, request: Request, num_new: int, label: str) -> None:
        needed, total = self._needed(request, num_new, self._shared_len(request, num_new)), self._total
        if needed > total:
            raise InputError(
                f"{label} needs room for {needed} tokens, expected at most {total}; raise "
                "kv_tokens_total (which free memory bounds by default), or give a shorter prompt or fewer new tokens"
            )

    def most_new(self, num_prompt: int, num_slots: int) -> int:
        """How many new tokens at most there is ever room for, behind a prompt and slots; below 1 where for none."""
        return largest_row(self._total - cost(num_slots)) - num_prompt

    def _needed(self, request: Request, num_new: int, shared_len: int) -> int:
        num_own = len(request.prompt_ids) - shared_len + num_new
        return self.batching.scheduler.need(request.num_slots, shared_len, num_own)

    def _shared_len(self, request: Request, num_new: int) -> int:
        """How many ids are read as a shared prefix: none where there is no room to read them apart from the others."""
        has_room = self._needed(request, num_new, request.prefix_len) <= self._total
        return request.prefix_len if has_room else 0

    @property
    def _total(self) -> int:
        return self.batching.scheduler.blocks.total

    def _add(self, request: Request, on_event: OnEvent | None = None, live: bool = False) -> Read:
        stop_ids = self.model.chat.stop_ids if request.stop_ids is None else request.stop_ids
        reply = Reply(request, stop_ids, self.model.chat.decode, Handle(), on_event)
        wanted_from = len(request.prompt_ids) - 1
        if request.prompt_logprobs_from is not None:
            wanted_from = request.prompt_logprobs_from - 1
        shared_len = self._shared_len(request, request.max_new_tokens)
        read = Read(list(request.prompt_ids), wanted_from, request.cartridge, shared_len, live, reply)
        read.limit = len(request.prompt_ids) + request.max_new_tokens
        reply.handle.on_abort = lambda: self._abort(read)
        self.batching.add(read)
        return read

    def _abort(self, read: Read) -> None:
        self.batching.abort(read)
        self._wake.set()

    def _end(self, reads: Sequence[Read]) -> None:
        """See that none of these is left behind."""
        if left := [read for read in reads if not read.task.ended]:
            with self._turn:
                for read in left:
                    self.batching.abort(read)
                self.batching.clear_aborted()

    def _step_until(self, is_enough: Callable[[], bool]) -> None:
        """A few steps, if no other thread is at it; then what they bring is for all."""
        if not self._turn.acquire(timeout=WAIT_S):
            return
        try:
            for _ in range(NUM_STEPS):
                if is_enough():
                    return
                with together(self.model.hf.config, WAIT_S) as may:
                    if not may:  # others use the model, to train it perhaps; aborts are heard meanwhile
                        self.batching.clear_aborted()
                        return
                    self.batching.step()
        finally:
            self._turn.release()

    def stream(self, request: Request) -> Iterator[str]:
        """The reply's text in pieces, as it comes; together they are the result's text. Never half a character.

        Raises as `generate` does, at the call.
        """
        self._check(request, "the request")
        return self._pieces(request)

    def _pieces(self, request: Request) -> Iterator[str]:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        read = self._add(request, events.put)
        handle: Handle = read.task.handle
        try:
            while not (handle.done and events.empty()):
                if events.empty():
                    self._step_until(lambda: not events.empty() or handle.done)
                elif text := events.get().text:
                    yield text
            handle.result()
        finally:
            self._end([read])

    def chat(self, text: str, system: str = "", cartridges: Sequence[Cartridge] = (), max_new_tokens: int = 256) -> str:
        """The likeliest reply to one message, cut at `max_new_tokens`. Several cartridges are composed."""
        messages = [{"role": "system", "content": system}] if system else []
        prompt_ids = self.model.chat.prompt([*messages, {"role": "user", "content": text}])
        shared = self.model.chat.system_prefix(system) if system else []
        request = Request(
            tuple(prompt_ids),
            max_new_tokens=max_new_tokens,
            shared_len=len(shared) if prompt_ids[: len(shared)] == shared else 0,
            cartridge=self.shelf.composed(cartridges) if cartridges else None,
        )
        return self.generate([request])[0].text

    def distributions(
        self, prompt_ids: Sequence[int], target_ids: Sequence[int], cartridge: Cartridge | None = None
    ) -> torch.Tensor:
        """Logprobs [M, V], float32: row m is the distribution of `target_ids[m]` given the prompt and those before."""
        return next(self.distributions_batch([(prompt_ids, target_ids, cartridge, 0)]))

    def distributions_batch(self, targets: Sequence[AskedTarget]) -> Iterator[torch.Tensor]:
        """`distributions` of many, in their order: (prompt_ids, target_ids, cartridge, shared_len) each.

        As many neighbours are read together as memory allows. Raises at the call as `generate` does.
        """
        reads = []
        for number, (prompt_ids, target_ids, cartridge, shared_len) in enumerate(targets):
            request = Request(tuple(prompt_ids), 0, shared_len=shared_len, cartridge=cartridge)
            label = f"target {number}"
            check_target(request, target_ids, self.model, label)
            self._check_room(request, len(target_ids), label)
            ids, first = [*prompt_ids, *target_ids[:-1]], len(prompt_ids) - 1
            shared_len = self._shared_len(request, len(target_ids))
            reads.append(Read(ids, first, cartridge, shared_len, task=Target()))
        return self._distributions(reads)

    def _distributions(self, reads: list[Read]) -> Iterator[torch.Tensor]:
        scheduler = self.batching.scheduler
        while reads:
            num, num_wanted = 0, 0
            while num < min(len(reads), scheduler.max_rows):
                num_wanted += len(reads[num].ids) - reads[num].wanted_from
                if num and num_wanted > scheduler.max_wanted:
                    break
                num += 1
            together, reads = reads[:num], reads[num:]
            for read in together:
                self.batching.add(read)
            try:
                while not _all_ended(together):
                    self._step_until(partial(_all_ended, together))
                for read in together:
                    if read.task.error:
                        raise read.task.error
            finally:
                self._end(together)
            for read in together:
                yield torch.cat([part.log_softmax(-1) for part in read.task.logits])
