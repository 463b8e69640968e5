"""A request under way: what there is of its answer, and who is told. Shapes: M tokens, V vocabulary, K top entries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from cartridges.conversation import TopK
from cartridges.engine.detokenizer import Detokenizer
from cartridges.engine.handle import Handle
from cartridges.engine.request import Event, FinishReason, Request, Result
from cartridges.engine.sampler import top_k

Entries = tuple[np.ndarray, np.ndarray]  # ids and logprobs [., K]
OnEvent = Callable[[Event], None]


@dataclass(eq=False)
class Reply:
    """A request and what there is of its answer."""

    request: Request
    stop_ids: frozenset[int]
    decode: Callable[[Sequence[int]], str]
    handle: Handle
    on_event: OnEvent | None = None
    token_ids: list[int] = field(default_factory=list)
    chosen_logprobs: list[float] = field(default_factory=list)
    entries: list[Entries] = field(default_factory=list)
    prompt_entries: list[Entries] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0  # of the prompt, when its first token came; a preempted one finds its own tokens too
    num_told: int = 0

    def __post_init__(self) -> None:
        """Text is made as it comes only where somebody looks at it."""
        needed = self.on_event or self.request.stop
        self.text = Detokenizer(self.decode, self.request.stop) if needed else None
        if not self.request.max_new_tokens:
            self.finish_reason = "length"

    @property
    def ended(self) -> bool:
        """Whether its handle knows."""
        return self.handle.done

    def hear_prompt(self, logits_MV: torch.Tensor) -> None:
        """Take what was wanted of the prompt's ids."""
        self.prompt_entries.append(top_k(logits_MV, self.request.top_k_logprobs))

    def take(self, token: int, logprob: float, entries: Entries | None) -> None:
        """Take the next token."""
        self.token_ids.append(token)
        self.chosen_logprobs.append(logprob)
        if entries is not None:
            self.entries.append(entries)
        if self.text and self.request.stop:  # else whoever tells of it makes it text
            self.text.add([token])
        if token in self.stop_ids or (self.text and self.text.stopped):
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.request.max_new_tokens:
            self.finish_reason = "length"

    def tell(self) -> None:
        """Tell of what is new, unless that is the end."""
        if self.on_event and not self.finish_reason:
            self.on_event(self._event(self._new()))

    def _new(self) -> int:
        """From which token on nobody was told, who will be now; they are made text."""
        start, self.num_told = self.num_told, len(self.token_ids)
        if self.text and not self.request.stop and start < self.num_told:
            self.text.add(self.token_ids[start:])
        return start

    def _event(self, start: int, reason: FinishReason | None = None, error: str = "") -> Event:
        assert self.text is not None
        ids, asked = self.token_ids[start:], self.request.top_k_logprobs
        entries = joined(self.entries[start:], asked) if asked and ids else None
        return Event(ids, self.text.told(), self.chosen_logprobs[start:], entries, reason, error)

    def end(self, error: Exception | None = None) -> None:
        """Tell that it has ended, and what was not told of yet."""
        text, start = self.decode(self.token_ids), self._new()
        if self.text:
            self.text.finish()
            text = self.text.text
            if self.text.stopped and self.finish_reason == "length":
                self.finish_reason = "stop"
        asked = self.request.top_k_logprobs
        result = None
        if not error:
            wants_prompt = self.request.prompt_logprobs_from is not None
            result = Result(
                token_ids=self.token_ids,
                text=text,
                finish_reason=self.finish_reason or "abort",
                logprobs=joined(self.entries, asked) if asked else None,
                prompt_logprobs=joined(self.prompt_entries, asked) if wants_prompt else None,
                num_prompt_tokens=len(self.request.prompt_ids),
                num_cached_tokens=self.num_cached_tokens,
                chosen_logprobs=self.chosen_logprobs,
            )
        try:
            if self.on_event:
                self.on_event(self._event(start, self.finish_reason, str(error or "")))
        except Exception as failure:  # of the caller's function; it must not stop others
            result, error = None, error or failure
        self.handle.end(result, error)


def joined(entries: Sequence[Entries], k: int) -> TopK:
    """Rows of entries as one."""
    none = (np.zeros((0, k), np.int32), np.zeros((0, k), np.float32))
    ids, logprobs = zip(none, *entries, strict=True)
    return TopK(np.concatenate(ids), np.concatenate(logprobs))
