"""Replies in the form of the OpenAI API, whole and in pieces.

Shapes: M new tokens, K top entries.
"""

import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cartridges.engine.request import Event, Result
from cartridges.serving.tokens import TokenTexts

if TYPE_CHECKING:
    from cartridges.conversation import TopK

LEAST_LOGPROB = -9999.0  # told for a probability of nothing, as JSON has no infinity


@dataclass(frozen=True)
class Asked:
    """What of a reply is to be told. `num_logprobs` is None where none are."""

    num_logprobs: int | None = None
    with_ids: bool = False
    tokens_as_ids: bool = False


@dataclass
class Usage:
    """Tokens of one request. Slots of cartridges are no tokens of the prompt; they are told beside."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    num_slots: int = 0

    def body(self) -> dict[str, Any]:
        """As the API writes it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "cartridge_slots": self.num_slots},
        }


def usage_of(results: Sequence[Result], choices_each: int, num_slots: int) -> Usage:
    """The usage of prompts with `choices_each` replies, one prompt's after another's. A prompt counts once."""
    firsts = results[::choices_each]
    return Usage(
        prompt_tokens=sum(result.num_prompt_tokens for result in firsts),
        completion_tokens=sum(len(result.token_ids) for result in results),
        cached_tokens=sum(result.num_cached_tokens for result in firsts),
        num_slots=num_slots,
    )


@dataclass
class Form:
    """Writes the replies to one request."""

    model: str
    texts: TokenTexts
    asked: Asked
    chat: bool
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = self.id or f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"

    @property
    def kind(self) -> str:
        return "chat.completion" if self.chat else "text_completion"

    def whole(self, results: Sequence[Result], usage: Usage, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        """The reply; `prompts` are those of each result."""
        choices = []
        for index, (result, prompt) in enumerate(zip(results, prompts, strict=True)):
            said = {"message": {"role": "assistant", "content": result.text}} if self.chat else {"text": result.text}
            logprobs = self.logprobs(result.token_ids, result.chosen_logprobs, result.logprobs)
            choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": result.finish_reason}
            if self.asked.with_ids:
                choice |= {"token_ids": result.token_ids, "prompt_token_ids": list(prompt)}
            choices.append(choice)
        return self._outer(self.kind, choices, usage.body())

    def opening(self, index: int, prompt: Sequence[int]) -> list[dict[str, Any]]:
        """The first piece of a stream; a text has none but to tell the ids of its prompt."""
        if not (self.chat or self.asked.with_ids):
            return []
        choice = self._choice(index, {"role": "assistant", "content": ""} if self.chat else "", None, None)
        if self.asked.with_ids:
            choice["prompt_token_ids"] = list(prompt)
        return [self._chunk([choice])]

    def piece(self, index: int, event: Event, text_offset: int = 0) -> list[dict[str, Any]]:
        """What is to be sent of an event: perhaps nothing, and the end of a chat in a piece of its own."""
        logprobs = self.logprobs(event.token_ids, event.chosen_logprobs, event.logprobs, text_offset)
        tells = bool(event.text) or (bool(event.token_ids) and (logprobs is not None or self.asked.with_ids))
        choices = []
        if self.chat:
            if tells:
                choices.append(self._choice(index, {"content": event.text}, logprobs, None, event))
            if event.finish_reason:
                choices.append(self._choice(index, {}, None, event.finish_reason))
        elif tells or event.finish_reason:
            choices.append(self._choice(index, event.text, logprobs, event.finish_reason, event))
        return [self._chunk([choice]) for choice in choices]

    def closing(self, usage: Usage) -> dict[str, Any]:
        """The piece that tells the usage."""
        return self._outer(self._chunk_kind, [], usage.body())

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._outer(self._chunk_kind, choices, None)

    def _choice(
        self, index: int, said: Any, logprobs: Any, finish_reason: str | None, event: Event | None = None
    ) -> dict[str, Any]:
        key = "delta" if self.chat else "text"
        choice = {"index": index, key: said, "logprobs": logprobs, "finish_reason": finish_reason}
        if self.asked.with_ids and event is not None:
            choice["token_ids"] = event.token_ids
        return choice

    def _outer(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        told = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        return {**told, "usage": usage, "system_fingerprint": None}

    def logprobs(
        self, ids: Sequence[int], chosen: Sequence[float], top: "TopK | None", text_offset: int = 0
    ) -> dict[str, Any] | None:
        """The logprobs of M tokens; None where they are not asked for."""
        if self.asked.num_logprobs is None:
            return None
        k = self.asked.num_logprobs
        rows = [self._row(top, place, k) for place in range(len(ids))]
        if self.chat:
            content = [
                {**self._entry(token, logprob), "top_logprobs": [self._entry(*entry) for entry in row]}
                for token, logprob, row in zip(ids, chosen, rows, strict=True)
            ]
            return {"content": content, "refusal": None}
        offsets = []
        for token in ids:
            offsets.append(text_offset)
            text_offset += len(self.texts.text_of(token))
        return {
            "tokens": [self._text(token) for token in ids],
            "token_logprobs": [finite(logprob) for logprob in chosen],
            "top_logprobs": self._with_chosen(ids, chosen, rows) if k else None,
            "text_offset": offsets,
        }

    def _with_chosen(
        self, ids: Sequence[int], chosen: Sequence[float], rows: Sequence[list[tuple[int, float]]]
    ) -> list[dict[str, float]]:
        """Of each token the likeliest ones and itself, as completions tell them."""
        return [
            {self._text(token): finite(logprob) for token, logprob in [*row, (own, logprob_of_own)]}
            for own, logprob_of_own, row in zip(ids, chosen, rows, strict=True)
        ]

    @staticmethod
    def _row(top: "TopK | None", place: int, k: int) -> list[tuple[int, float]]:
        if top is None or not k:
            return []
        return [(int(i), finite(float(p))) for i, p in zip(top.ids[place][:k], top.logprobs[place][:k], strict=True)]

    def _text(self, token: int) -> str:
        return f"token_id:{token}" if self.asked.tokens_as_ids else self.texts.text_of(token)

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self._text(token), "logprob": finite(logprob), "bytes": list(self.texts.bytes_of(token))}


def finite(logprob: float) -> float:
    """The logprob, or a very small one."""
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB
