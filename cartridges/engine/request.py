"""What is asked of the engine, and what it answers. Shapes: M new tokens, or tokens of the prompt; K top entries."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from cartridges.errors import InputError

if TYPE_CHECKING:
    from cartridges.cartridge import Cartridge
    from cartridges.conversation import TopK
    from cartridges.model import Model

FinishReason = Literal["stop", "length", "abort", "error"]
MAX_STOPS, MAX_STOP_LEN = 16, 1024


@dataclass(frozen=True)
class Request:
    """A prompt to go on with: greedily at temperature 0, else drawn with `seed`.

    `top_k_logprobs` asks for the K likeliest ids at every new token, `prompt_logprobs_from` for those at every id of
    the prompt from that place on, too. `shared_len` is a hint: the first so many ids are shared with other requests
    and are computed once; results do not depend on it. `stop_ids` defaults to those of the chat format. The prompt
    stands behind the slots of `cartridge`. Draws are among the `top_k` likeliest (0: all), and of those the fewest
    whose probability is `top_p` together. A reply ends before the first of the strings `stop`.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    top_k_logprobs: int = 0
    prompt_logprobs_from: int | None = None
    shared_len: int = 0
    cartridge: "Cartridge | None" = None
    stop_ids: frozenset[int] | None = None
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()

    @property
    def num_slots(self) -> int:
        return self.cartridge.num_slots if self.cartridge else 0

    @property
    def prefix_len(self) -> int:
        """How many ids of the prompt are read as a shared prefix.

        At least one id is left to the request itself, and all whose distributions are asked for.
        """
        limit = len(self.prompt_ids) if self.prompt_logprobs_from is None else self.prompt_logprobs_from
        return max(0, min(self.shared_len, limit - 1, len(self.prompt_ids) - 1))


@dataclass(frozen=True)
class Result:
    """A reply. `token_ids` include the id that ended it where `finish_reason` is "stop"; `text` has no special tokens.

    `chosen_logprobs` are those of `token_ids`, in the full softmax at temperature 1. `logprobs` has M = len(token_ids)
    rows of it, `prompt_logprobs` one for each asked id of the prompt. `num_cached_tokens` of the prompt's ids were read
    before or with another request.
    """

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: "TopK | None"
    prompt_logprobs: "TopK | None"
    num_prompt_tokens: int
    num_cached_tokens: int
    chosen_logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Event:
    """What is new of a reply; the last one of a reply has its `finish_reason`.

    `text` never ends within a character, and holds no part of a stop string.
    """

    token_ids: list[int]
    text: str
    chosen_logprobs: list[float]
    logprobs: "TopK | None" = None
    finish_reason: FinishReason | None = None
    error: str = ""

    @classmethod
    def of(cls, events: Sequence["Event"]) -> "Event":
        """One for some that follow one another."""
        if len(events) == 1:
            return events[0]
        told = [event.logprobs for event in events if event.logprobs is not None]
        return cls(
            [token for event in events for token in event.token_ids],
            "".join(event.text for event in events),
            [logprob for event in events for logprob in event.chosen_logprobs],
            type(told[0]).concat(told) if told else None,
            events[-1].finish_reason,
            events[-1].error,
        )


@dataclass(frozen=True)
class EngineStats:
    """What the engine does now, and in numbers of tokens and preemptions, what it did since its start."""

    num_running: int
    num_waiting: int
    num_prompt_tokens: int
    num_new_tokens: int
    num_cached_tokens: int
    num_preemptions: int
    kv_tokens_used: int
    kv_tokens_total: int
    cartridges: list[str]


def check(request: Request, model: "Model", label: str = "the request") -> None:
    """Raises InputError, or FormatError for a cartridge of another model, for what cannot be answered."""
    num_prompt, vocab_size = len(request.prompt_ids), model.identity.vocab_size
    if not num_prompt:
        raise InputError(f"{label} has an empty prompt, expected at least one token id")
    check_ids(request.prompt_ids, model, label)
    if request.max_new_tokens < 0 or request.shared_len < 0:
        raise InputError(
            f"{label} has max_new_tokens={request.max_new_tokens} and shared_len={request.shared_len}, expected "
            "numbers from 0 on"
        )
    if not (math.isfinite(request.temperature) and request.temperature >= 0):
        raise InputError(f"{label} has temperature={request.temperature}, expected 0 (greedy) or a number above")
    check_sampling(request, label)
    if not 0 <= request.top_k_logprobs <= vocab_size:
        raise InputError(
            f"{label} has top_k_logprobs={request.top_k_logprobs}, expected 0 to {vocab_size}, the vocabulary's size"
        )
    if request.prompt_logprobs_from is not None:
        if not 1 <= request.prompt_logprobs_from <= num_prompt:
            raise InputError(
                f"{label} has prompt_logprobs_from={request.prompt_logprobs_from}, expected 1 to {num_prompt}, the "
                "prompt's length (nothing tells of the first id)"
            )
        if not request.top_k_logprobs:
            raise InputError(f"{label} has prompt_logprobs_from but top_k_logprobs=0; give the number of entries")
    check_room(request, request.max_new_tokens, model, label)


def check_sampling(request: Request, label: str) -> None:
    """Raises InputError for what cannot be drawn from, or waited for."""
    if not 0 < request.top_p <= 1:
        raise InputError(f"{label} has top_p={request.top_p}, expected a number above 0, up to 1")
    if request.top_k < 0:
        raise InputError(f"{label} has top_k={request.top_k}, expected 0 (off) or more")
    longest = max(map(len, request.stop), default=1)
    if len(request.stop) > MAX_STOPS or longest > MAX_STOP_LEN or not all(request.stop):
        raise InputError(
            f"{label} has {len(request.stop)} stop strings of up to {longest} characters, expected at most {MAX_STOPS} "
            f"of 1 to {MAX_STOP_LEN}"
        )


def check_target(request: Request, target_ids: Sequence[int], model: "Model", label: str) -> None:
    """Raises as `check` does where the distributions of `target_ids` behind the request's prompt cannot be told."""
    check(request, model, label)
    if not target_ids:
        raise InputError(f"{label} is empty, expected at least one token id")
    check_ids(target_ids, model, label)
    check_room(request, len(target_ids), model, label)


def check_ids(ids: Sequence[int], model: "Model", label: str) -> None:
    """Raises InputError for ids that are none of the model's."""
    wrong = [token for token in (min(ids), max(ids)) if not 0 <= token < model.identity.vocab_size]
    if wrong:
        raise InputError(
            f"{label} has the token id {wrong[0]}, expected 0 to {model.identity.vocab_size - 1}; use the tokenizer of "
            f"{model.identity.model_id}"
        )


def check_room(request: Request, num_new: int, model: "Model", label: str) -> None:
    """Raises InputError where slots, prompt and new tokens exceed the window, FormatError for a wrong cartridge."""
    if request.cartridge is not None:
        request.cartridge.check_fits(model.identity)
    total = request.num_slots + len(request.prompt_ids) + num_new
    if total > model.window:
        raise InputError(
            f"{label} has {request.num_slots} slots + {len(request.prompt_ids)} prompt tokens + {num_new} new tokens = "
            f"{total}, expected at most {model.window}, the window of {model.identity.model_id}; give a shorter prompt "
            "or fewer new tokens"
        )
