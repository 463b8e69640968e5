"""Continuous batching: step by step, requests join, are read in chunks, get a token each, and leave.

A request that fails ends alone; only a failing call of the model ends all that were in it.

Shapes: M wanted tokens, B replies, V vocabulary, K top entries.
"""

from collections import deque
from collections.abc import Sequence as Many
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from cartridges.engine import runner as running
from cartridges.engine.blocks import Blocks
from cartridges.engine.reply import Reply
from cartridges.engine.runner import Runner
from cartridges.engine.sampler import NO_NUMBERS, choose, top_k
from cartridges.engine.scheduler import AHEAD, MAX_ROWS, MAX_STEP_TOKENS, Chunk, Scheduler, Sequence, shared_key
from cartridges.errors import CartridgesError, InputError


@dataclass(eq=False)
class Target:
    """Ids of which whole distributions are wanted; `logits` has the parts [., V] so far."""

    logits: list[torch.Tensor] = field(default_factory=list)
    ended: bool = False
    error: Exception | None = None


@dataclass
class Counts:
    """Tokens since the start."""

    prompt: int = 0
    new: int = 0
    cached: int = 0


class Batching:
    """The loop's state. `add` and `abort` may be called by any thread, `step` by one at a time."""

    def __init__(self, runner: Runner, kv_tokens_total: int) -> None:
        self.runner = runner
        kind = runner.model.device.type
        self.scheduler = Scheduler(
            Blocks(kv_tokens_total),
            runner.store,
            runner.load,
            MAX_ROWS,
            MAX_STEP_TOKENS.get(kind, MAX_STEP_TOKENS["cpu"]),
            max(1, running.MAX_LOGITS // runner.model.identity.vocab_size),
            AHEAD.get(kind, 0),
        )
        self.counts = Counts()
        self.num_ended = 0
        self._untold: list[Sequence] = []  # with tokens to tell of while the device makes the next step
        self._inbox: deque[Sequence] = deque()
        self._aborted: deque[Sequence] = deque()

    def add(self, sequence: Sequence) -> None:
        """Hand in a sequence; its task is a Reply or a Target."""
        self._inbox.append(sequence)

    @property
    def num_waiting(self) -> int:
        return len(self._inbox) + len(self.scheduler.waiting)

    def abort(self, sequence: Sequence) -> None:
        """Have a sequence end with the next step."""
        self._aborted.append(sequence)

    @torch.inference_mode()
    def step(self) -> None:
        """Read one call's worth: a token for all that are under way, and chunks of prompts."""
        scheduler = self.scheduler
        self.clear_aborted()
        try:
            readers = scheduler.admit()
            while readers and not scheduler.is_live:
                for reader in readers:
                    self._read_alone(reader)
                readers = scheduler.admit()
        except Exception as error:  # of a cartridge that cannot be brought to the model's device
            if scheduler.admitting in scheduler.waiting:
                self._end(scheduler.admitting, "error", error)
                return  # those behind it are let in with the next step
        if scheduler.waiting and not scheduler.running:
            head, total = scheduler.waiting[0], scheduler.blocks.total
            self._end(
                head, "error", InputError(f"no room for {len(head.ids)} tokens among {total}; raise kv_tokens_total")
            )
        try:
            if chunks := scheduler.plan():
                self._read(chunks)
            else:
                self._tell()
        except Exception as error:  # as of memory that is not there: who steps for all must live on
            for sequence in list(scheduler.running):
                self._fail(sequence, error)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """End a sequence in whatever state it is; what was kept of it is given back."""
        try:
            self._end(sequence, "error", error)
        except Exception:  # telling it failed too
            if sequence in self.scheduler.running:
                self._leave(sequence)

    @torch.inference_mode()
    def clear_aborted(self) -> None:
        """Take in what was handed in, and out what was aborted, with what is read for nobody else."""
        scheduler = self.scheduler
        while self._inbox:
            scheduler.add(self._inbox.popleft())
        if not self._aborted:
            return
        while self._aborted:
            sequence = self._aborted.popleft()
            if sequence in scheduler.running or sequence in scheduler.waiting:
                self._end(sequence, "abort")
        keys = {shared_key(waiting) for waiting in scheduler.waiting if waiting.shared_len}
        for reader in [one for one in scheduler.running if one.fills and one.fills not in keys]:
            self._leave(reader)

    def _read_alone(self, reader: Sequence) -> None:
        """Read a shared beginning to its end, or until nobody waits for it any more."""
        while reader in self.scheduler.running:
            self._read([Chunk(reader, min(reader.num_unread, self.scheduler.max_step_tokens))])
            self.clear_aborted()

    def _read(self, chunks: Many[Chunk]) -> None:
        try:
            logits_MV, chunks = self.runner.read(chunks)
        except Exception as error:  # whatever it is, the engine goes on
            for chunk in chunks:
                self._end(chunk.sequence, "error", error)
            return
        place, ready, rows = 0, [], []
        num_told = [chunk.num_wanted for chunk in chunks]
        for chunk in chunks:  # before any leaves: what its row is filled with must keep what this step read
            chunk.sequence.num_read += chunk.num_new
        self._tell()  # of the step before; a device that works by itself is at this one
        for chunk, num in zip(chunks, num_told, strict=True):
            sequence, task = chunk.sequence, chunk.sequence.task
            first, place = place, place + num
            if task and task.ended:  # as it could not be told
                continue
            if isinstance(task, Target):
                task.logits.append(logits_MV[first:place].clone())
                if not sequence.num_unread:
                    self._end(sequence, "")
            elif isinstance(task, Reply):
                is_ready = not sequence.num_unread
                if num > is_ready:
                    task.hear_prompt(logits_MV[first : place - is_ready])
                if is_ready:
                    ready.append(sequence)
                    rows.append(place - 1)
            elif not sequence.num_unread:
                try:
                    self.scheduler.keep(sequence, whole=True)
                except Exception as error:  # as of memory: those who wait for it fail, and no others
                    self._end(sequence, "error", error)
                else:
                    self._leave(sequence)
        if ready:
            self._choose(logits_MV if len(rows) == len(logits_MV) else logits_MV[rows], ready)

    def _choose(self, logits_BV: torch.Tensor, sequences: list[Sequence]) -> None:
        lse_B = logits_BV.logsumexp(-1)
        good = lse_B.isfinite().tolist()
        if not all(good):
            for sequence, is_good in zip(sequences, good, strict=True):
                if not is_good:
                    self.runner.store.clear(sequence.size, sequence.row)
                    self._end(sequence, "error", CartridgesError(NO_NUMBERS))
            sequences = [sequence for sequence, is_good in zip(sequences, good, strict=True) if is_good]
            rows = [row for row, is_good in enumerate(good) if is_good]
            if not rows:
                return
            logits_BV, lse_B = logits_BV[rows], lse_B[rows]
        replies: list[Reply] = [sequence.task for sequence in sequences]
        asked = [reply.request for reply in replies]
        chosen = choose(
            logits_BV,
            [request.temperature for request in asked],
            [request.seed for request in asked],
            [len(reply.token_ids) for reply in replies],
            [request.top_p for request in asked],
            [request.top_k for request in asked],
        )
        index_B1 = torch.tensor(chosen, device=logits_BV.device)[:, None]
        logprobs = (logits_BV.gather(1, index_B1)[:, 0] - lse_B).tolist()
        most = max(request.top_k_logprobs for request in asked)
        entries_BK = top_k(logits_BV, most) if most else None
        for place, (sequence, token, logprob) in enumerate(zip(sequences, chosen, logprobs, strict=True)):
            k, entries = sequence.task.request.top_k_logprobs, None
            if entries_BK and k:
                entries = (entries_BK[0][place : place + 1, :k], entries_BK[1][place : place + 1, :k])
            self._take(sequence, token, logprob, entries)

    def _take(self, sequence: Sequence, token: int, logprob: float, entries: tuple | None) -> None:
        reply: Reply = sequence.task
        if not reply.token_ids:
            self.counts.prompt += len(reply.request.prompt_ids)
            self.counts.cached += sequence.num_cached
            reply.num_cached_tokens = sequence.num_cached
        if reply.finish_reason:  # no new tokens were asked for
            self._end(sequence, reply.finish_reason)
            return
        self.counts.new += 1
        try:
            reply.take(token, logprob, entries)
            if self.runner.is_async and not reply.finish_reason:
                self._untold.append(sequence)
            else:
                reply.tell()
        except Exception as error:  # of the caller's function
            self._end(sequence, "error", error)
            return
        sequence.ids.append(token)
        if reply.finish_reason:
            self._end(sequence, reply.finish_reason)

    def _tell(self) -> None:
        """Tell of the tokens that nobody was told of yet."""
        untold, self._untold = self._untold, []
        for sequence in untold:
            try:
                sequence.task.tell()
            except Exception as error:  # of the caller's function
                self._end(sequence, "error", error)

    def _leave(self, sequence: Sequence) -> None:
        """Let go of a sequence, and with the last one of what the last step read."""
        self.scheduler.leave(sequence)
        if sequence in self._untold:
            self._untold.remove(sequence)
        if not self.scheduler.running:
            self.runner.steps.forget()

    def _end(self, sequence: Sequence, reason: str, error: Exception | None = None) -> None:
        """Let a sequence leave, and tell who waits for it."""
        scheduler, task = self.scheduler, sequence.task
        if sequence.live and sequence.lasting and not error and sequence in scheduler.running:
            with suppress(Exception):  # as of memory: it is kept for others, who can do without
                scheduler.keep(sequence, whole=False)
        self._leave(sequence)
        if sequence.fills:  # those that wait for what it failed to read
            for waiting in list(scheduler.waiting):
                if waiting.shared_len and shared_key(waiting) == sequence.fills:
                    self._end(waiting, reason, error)
        elif isinstance(task, Target):
            task.ended, task.error = True, error
        elif isinstance(task, Reply):
            task.finish_reason = reason  # type: ignore[assignment]
            self.num_ended += 1
            task.end(error)
