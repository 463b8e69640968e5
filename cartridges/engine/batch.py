"""Requests that are answered together, one token a step each. Rows that ended leave when at most half still run.

Shapes: B rows, T columns, V vocabulary, K top entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from cartridges.conversation import TopK
from cartridges.engine.request import Request, Result
from cartridges.engine.rows import Prefix
from cartridges.engine.runner import Runner
from cartridges.engine.sampler import choose, top_k

Entries = tuple[np.ndarray, np.ndarray]  # ids and logprobs [., K]


@dataclass
class Reply:
    """A request and what there is of its answer. `number` tells the caller which request it is."""

    request: Request
    number: int
    stop_ids: frozenset[int]
    num_cached_tokens: int
    token_ids: list[int] = field(default_factory=list)
    entries: list[Entries] = field(default_factory=list)
    prompt_entries: list[Entries] = field(default_factory=list)

    @property
    def finish_reason(self) -> Literal["stop", "length"] | None:
        """None while it runs."""
        if self.token_ids and self.token_ids[-1] in self.stop_ids:
            return "stop"
        return "length" if len(self.token_ids) >= self.request.max_new_tokens else None

    def result(self, text: str) -> Result:
        """What the caller gets, once it has ended."""
        asked = self.request.top_k_logprobs
        wants_prompt = self.request.prompt_logprobs_from is not None
        return Result(
            token_ids=self.token_ids,
            text=text,
            finish_reason=self.finish_reason or "length",
            logprobs=_joined(self.entries, asked) if asked else None,
            prompt_logprobs=_joined(self.prompt_entries, asked) if wants_prompt else None,
            num_prompt_tokens=len(self.request.prompt_ids),
            num_cached_tokens=self.num_cached_tokens,
        )


def _joined(entries: list[Entries], k: int) -> TopK:
    none = (np.zeros((0, k), np.int32), np.zeros((0, k), np.float32))
    ids, logprobs = zip(none, *entries, strict=True)
    return TopK(np.concatenate(ids), np.concatenate(logprobs))


class Batch:
    """Replies to requests behind one prefix: `step` until none is `running`. The first step reads the prompts."""

    def __init__(self, runner: Runner, prefix: Prefix, prefix_len: int, replies: Sequence[Reply]) -> None:
        """`prefix` is that of the cartridge and of the first `prefix_len` ids of every prompt."""
        self.runner = runner
        self.prefix_len = prefix_len
        self.running = dict(enumerate(replies))  # by row
        texts = [reply.request.prompt_ids[prefix_len:] for reply in replies]
        self.rows, self.prompts_BT = runner.open(prefix, texts)

    @torch.inference_mode()
    def step(self) -> list[Reply]:
        """One more token for every reply that runs; gives those that ended."""
        logits_BV = self._read_tokens() if self.rows.length else self._read_prompts()
        live = [(row, reply) for row, reply in self.running.items() if reply.finish_reason is None]
        if live:
            self._choose(logits_BV, live)
        ended = [row for row, reply in self.running.items() if reply.finish_reason]
        replies = [self.running.pop(row) for row in ended]
        if self.running and 2 * len(self.running) <= len(self.rows.paddings):
            self.rows.keep(list(self.running))
            self.running = dict(enumerate(self.running.values()))
        return replies

    def _choose(self, logits_BV: torch.Tensor, live: list[tuple[int, Reply]]) -> None:
        if len(live) < logits_BV.shape[0]:
            logits_BV = logits_BV[[row for row, _ in live]]
        requests = [reply.request for _, reply in live]
        temperatures, seeds = [request.temperature for request in requests], [request.seed for request in requests]
        chosen = choose(logits_BV, temperatures, seeds, [len(reply.token_ids) for _, reply in live])
        most = max(request.top_k_logprobs for request in requests)
        entries_BK = top_k(logits_BV, most) if most else None
        for place, (token, (_, reply)) in enumerate(zip(chosen, live, strict=True)):
            reply.token_ids.append(token)
            if entries_BK and (k := reply.request.top_k_logprobs):
                ids_BK, logprobs_BK = entries_BK
                reply.entries.append((ids_BK[place : place + 1, :k], logprobs_BK[place : place + 1, :k]))

    def _read_tokens(self) -> torch.Tensor:
        """Logits [B, V] behind the newest token of each row; rows that ended read anything."""
        newest = [
            self.running[row].token_ids[-1] if row in self.running else 0 for row in range(len(self.rows.paddings))
        ]
        return self.runner.forward(torch.tensor(newest, device=self.rows.device)[:, None], self.rows, 1)[:, 0]

    def _read_prompts(self) -> torch.Tensor:
        """Logits [B, V] behind the prompts; notes the entries of the prompts' own ids on the way."""
        num_columns = self.prompts_BT.shape[1]
        first_columns = {
            row: self.rows.paddings[row] + reply.request.prompt_logprobs_from - 1 - self.prefix_len
            for row, reply in self.running.items()
            if reply.request.prompt_logprobs_from is not None
        }
        logits_BTV = torch.empty(0)
        for start, logits_BTV in self.runner.read(
            self.rows, self.prompts_BT, min(first_columns.values(), default=num_columns - 1)
        ):
            for row, first in first_columns.items():
                kept_TV = logits_BTV[row, max(0, first - start) : num_columns - 1 - start]
                if len(kept_TV):  # what the last column tells is of the first new token
                    self.running[row].prompt_entries.append(top_k(kept_TV, self.running[row].request.top_k_logprobs))
        return logits_BTV[:, -1]
