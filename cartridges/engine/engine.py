"""Inference in this process, on an unmodified Hugging Face model, with or without a cartridge.

Requests behind the same prefix are answered in batches; the prefix is read once and kept for later calls. A result
depends on its request alone, up to rounding: floating-point sums in batches of other sizes may differ in the last bits.
The same call gives the same bits.

Shapes: M target tokens, V vocabulary.
"""

import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from cartridges.cartridge import Cartridge
from cartridges.engine.attention import engine_attention
from cartridges.engine.batch import Batch, Reply
from cartridges.engine.handle import Handle
from cartridges.engine.prefixes import Prefixes, prefix_key
from cartridges.engine.request import EngineStats, Event, FinishReason, Request, Result, check, check_target
from cartridges.engine.runner import MAX_LOGITS, Runner
from cartridges.engine.scheduler import MAX_ROWS, Limits, schedule
from cartridges.engine.shelf import Shelf
from cartridges.errors import InputError
from cartridges.model import Model, load_model

PREFIX_BYTES = 1 << 30
INCOMPLETE = "\ufffd"  # what tokenizers write for a character whose last bytes are still to come

OnEvent = Callable[[Event], None] | None
Target = tuple[Sequence[int], Sequence[int], Cartridge | None, int]


class Engine:
    """A model that answers. Threads may share an engine; they take turns."""

    def __init__(
        self,
        model: Model | str | Path,
        max_batch_tokens: int = 65536,
        autocast_bf16: bool | None = None,
        max_prefix_bytes: int = PREFIX_BYTES,
    ) -> None:
        """`model` may be a name or folder to load.

        A batch has at most `max_batch_tokens` tokens of prefix, prompts and replies, padding included; prefixes are
        kept in at most `max_prefix_bytes`. `autocast_bf16` multiplies in bfloat16 on a CPU; None is as loaded.
        """
        if max_batch_tokens < 1:
            raise InputError(f"given max_batch_tokens={max_batch_tokens}, expected 1 or more")
        self.model = model if isinstance(model, Model) else load_model(model)
        self.limits = Limits(MAX_ROWS.get(self.model.device.type, MAX_ROWS["cpu"]), max_batch_tokens)
        self.runner = Runner(self.model, bool(autocast_bf16))
        self.prefixes = Prefixes(self.runner, max_prefix_bytes)
        self.shelf = Shelf(self.model)
        self._turn = threading.RLock()
        self._queue: queue.SimpleQueue[tuple[Request, OnEvent, Handle, threading.Event] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._num_waiting = self._num_running = self._num_prompt_tokens = self._num_new_tokens = 0
        self._deadline: float | None = None

    def generate(self, requests: Sequence[Request], on_done: Callable[[int], None] | None = None) -> list[Result]:
        """The results, in the order of the requests; `on_done` is called with the number of requests newly finished.

        Raises InputError, before any work, for a request that cannot be answered, FormatError for a cartridge of
        another model.
        """
        requests = list(requests)
        for number, request in enumerate(requests):
            check(request, self.model, f"request {number}")
        results: dict[int, Result] = {}
        with self._turn, engine_attention(self.model.hf):
            for numbers in schedule(requests, self.limits):
                batch = self._batch([(number, requests[number]) for number in numbers])
                while batch.running:
                    ended = batch.step()
                    for reply in ended:
                        results[reply.number] = reply.result(self.model.chat.decode(reply.token_ids))
                    if ended and on_done:
                        on_done(len(ended))
        return [results[number] for number in range(len(requests))]

    def submit(self, request: Request, on_event: OnEvent = None) -> Handle:
        """Hand a request in; `on_event` is called with what is new of its reply, on the engine's thread.

        Raises as `generate` does, at the call.
        """
        check(request, self.model)
        aborted = threading.Event()
        handle = Handle(aborted.set)
        self.start()
        self._num_waiting += 1
        self._queue.put((request, on_event, handle, aborted))
        return handle

    def start(self) -> None:
        """Have a thread that works on what is handed in; `submit` does so by itself."""
        with self._turn:
            if self._thread is None:
                self._deadline = None
                self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
                self._thread.start()

    def close(self, drain_seconds: float = 0.0) -> None:
        """Let requests finish for so long, end the others with "abort", and stop the thread."""
        if self._thread is not None:
            self._deadline = time.monotonic() + drain_seconds
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def stats(self) -> EngineStats:
        """What the engine does and did."""
        return EngineStats(
            num_running=self._num_running,
            num_waiting=self._num_waiting,
            num_prompt_tokens=self._num_prompt_tokens,
            num_new_tokens=self._num_new_tokens,
            num_cached_tokens=0,
            num_preemptions=0,
            kv_tokens_used=0,
            kv_tokens_total=self.limits.num_tokens,
            cartridges=self.shelf.names(),
        )

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            self._num_waiting -= 1
            self._num_running = 1
            request, on_event, handle, aborted = item
            try:
                result = self._answer(request, on_event, aborted)
                self._num_prompt_tokens += result.num_prompt_tokens
                self._num_new_tokens += len(result.token_ids)
                handle.end(result)
            except Exception as error:
                if on_event:
                    on_event(Event([], "", [], None, "error", str(error)))
                handle.end(None, str(error))
            self._num_running = 0

    def _answer(self, request: Request, on_event: OnEvent, aborted: threading.Event) -> Result:
        with self._turn:
            batch = self._batch([(0, request)])
        reply, text, told, num_told = batch.running[0], "", "", 0
        finish_reason: FinishReason | None = None
        while finish_reason is None:
            if aborted.is_set() or (self._deadline is not None and time.monotonic() >= self._deadline):
                finish_reason = "abort"
            else:
                with self._turn:
                    batch.step()
                finish_reason = reply.finish_reason
            text = self.model.chat.decode(reply.token_ids)
            for stop in request.stop:
                if stop in text:
                    text, finish_reason = text[: text.index(stop)], "stop"
            whole = finish_reason or not (text.endswith(INCOMPLETE) or request.stop)
            new = text[len(told) :] if whole else ""
            told += new
            if on_event:
                ids = reply.token_ids[num_told:]
                num_told = len(reply.token_ids)
                on_event(Event(ids, new, [0.0] * len(ids), None, finish_reason))
        result = reply.result(text)
        return dataclasses.replace(result, finish_reason=finish_reason, chosen_logprobs=[0.0] * len(reply.token_ids))

    def _batch(self, requests: Sequence[tuple[int, Request]]) -> Batch:
        """A batch of numbered requests with one prefix. The first of them reads it, where it is not there yet."""
        first = requests[0][1]
        prefix_len = first.prefix_len
        prefix, was_there = self.prefixes.get(first.cartridge, first.prompt_ids[:prefix_len])
        replies = []
        for place, (number, request) in enumerate(requests):
            stop_ids = self.model.chat.stop_ids if request.stop_ids is None else request.stop_ids
            replies.append(Reply(request, number, stop_ids, prefix_len if was_there or place else 0))
        return Batch(self.runner, prefix, prefix_len, replies)

    def stream(self, request: Request) -> Iterator[str]:
        """The reply's text in pieces, as it comes; together they are the result's text. Never half a character.

        Raises as `generate` does, at the call.
        """
        check(request, self.model)
        return self._pieces(request)

    def _pieces(self, request: Request) -> Iterator[str]:
        with self._turn:
            batch = self._batch([(0, request)])
        reply, told = batch.running[0], ""
        while batch.running:
            with self._turn:
                batch.step()
            text = self.model.chat.decode(reply.token_ids)
            whole = not batch.running or not text.endswith(INCOMPLETE)
            if whole and len(text) > len(told):
                yield text[len(told) :]
                told = text

    def chat(self, text: str, system: str = "", cartridges: Sequence[Cartridge] = (), max_new_tokens: int = 256) -> str:
        """The likeliest reply to one message, cut at `max_new_tokens`."""
        if len(cartridges) > 1:
            raise InputError(f"given {len(cartridges)} cartridges, expected at most one; several at once are to come")
        messages = [{"role": "system", "content": system}] if system else []
        prompt_ids = self.model.chat.prompt([*messages, {"role": "user", "content": text}])
        shared = self.model.chat.system_prefix(system) if system else []
        request = Request(
            tuple(prompt_ids),
            max_new_tokens=max_new_tokens,
            shared_len=len(shared) if prompt_ids[: len(shared)] == shared else 0,
            cartridge=cartridges[0] if cartridges else None,
        )
        return self.generate([request])[0].text

    def distributions(
        self, prompt_ids: Sequence[int], target_ids: Sequence[int], cartridge: Cartridge | None = None
    ) -> torch.Tensor:
        """Logprobs [M, V], float32: row m is the distribution of `target_ids[m]` given the prompt and those before."""
        return next(self.distributions_batch([(prompt_ids, target_ids, cartridge, 0)]))

    def distributions_batch(self, targets: Sequence[Target]) -> Iterator[torch.Tensor]:
        """`distributions` of many, in their order: (prompt_ids, target_ids, cartridge, shared_len) each.

        Neighbours that share the first `shared_len` ids of the prompt and the cartridge are read together, so order
        them by that. Raises at the call as `generate` does.
        """
        requests = []
        for number, (prompt_ids, target_ids, cartridge, shared_len) in enumerate(targets):
            request = Request(tuple(prompt_ids), 0, shared_len=shared_len, cartridge=cartridge)
            check_target(request, target_ids, self.model, f"target {number}")
            requests.append((request, list(target_ids)))
        return self._distributions(requests)

    def _distributions(self, requests: list[tuple[Request, list[int]]]) -> Iterator[torch.Tensor]:
        def prefix_of(item: tuple[Request, list[int]]) -> object:
            request = item[0]
            return prefix_key(request.cartridge, request.prompt_ids[: request.prefix_len])

        for _, group in itertools.groupby(requests, key=prefix_of):
            batch: list[tuple[Request, list[int]]] = []
            for item in group:
                if batch and not self._fit_together([*batch, item]):
                    yield from self._read_targets(batch)
                    batch = []
                batch.append(item)
            yield from self._read_targets(batch)

    def _fit_together(self, batch: list[tuple[Request, list[int]]]) -> bool:
        request = batch[0][0]
        longest = max(len(item.prompt_ids) - item.prefix_len + len(target) for item, target in batch)
        num_logits = sum(len(target) for _, target in batch) * self.model.identity.vocab_size
        num_tokens = request.num_slots + request.prefix_len + len(batch) * longest
        return len(batch) <= self.limits.num_rows and num_tokens <= self.limits.num_tokens and num_logits <= MAX_LOGITS

    def _read_targets(self, batch: list[tuple[Request, list[int]]]) -> list[torch.Tensor]:
        """Logprobs [M, V] of each target of a batch behind one prefix: of the last M columns of its row."""
        first = batch[0][0]
        parts: list[list[torch.Tensor]] = [[] for _ in batch]
        with self._turn:
            prefix, _ = self.prefixes.get(first.cartridge, first.prompt_ids[: first.prefix_len])
            texts = [(*request.prompt_ids[first.prefix_len :], *target[:-1]) for request, target in batch]
            rows, ids_BT = self.runner.open(prefix, texts)
            num_columns = ids_BT.shape[1]
            first_columns = [num_columns - len(target) for _, target in batch]
            for start, logits_BTV in self.runner.read(rows, ids_BT, min(first_columns)):
                for row, first_column in enumerate(first_columns):
                    kept_TV = logits_BTV[row, max(0, first_column - start) :]
                    if len(kept_TV):
                        parts[row].append(kept_TV.log_softmax(-1))
        return [torch.cat(part) for part in parts]
