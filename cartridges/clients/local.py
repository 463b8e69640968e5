"""The client of the engine in this process."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cartridges.clients.base import ChatRequest, ChatResult
from cartridges.engine.request import Request
from cartridges.template import ChatFormat

if TYPE_CHECKING:
    from cartridges.cartridge import ModelIdentity
    from cartridges.engine.engine import Engine


class _Abandoned(Exception):
    """Nobody waits for the replies any more."""


class LocalClient:
    """Answers with an `Engine`, in a thread, so that the event loop stays free."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self._thinking_format: ChatFormat | None = None

    @property
    def model_id(self) -> str:
        return self.engine.model.identity.model_id

    @property
    def chat_format(self) -> ChatFormat:
        return self.engine.model.chat

    @property
    def window(self) -> int:
        return self.engine.model.window

    @property
    def identity(self) -> "ModelIdentity":
        return self.engine.model.identity

    async def chat(
        self, requests: Sequence[ChatRequest], on_done: Callable[[int], None] | None = None
    ) -> list[ChatResult]:
        """The replies; where the task is cancelled, the engine stops at the next reply that it finishes."""
        abandoned = threading.Event()

        def told(num_done: int) -> None:
            if abandoned.is_set():
                raise _Abandoned
            if on_done:
                on_done(num_done)

        asked = [self.engine_request(request) for request in requests]
        try:
            results = await asyncio.to_thread(self.engine.generate, asked, told)
        except asyncio.CancelledError:
            abandoned.set()
            raise
        return [
            ChatResult(
                text=result.text,
                token_ids=result.token_ids,
                finish_reason=result.finish_reason,
                logprobs=result.logprobs,
                prompt_logprobs=result.prompt_logprobs,
                num_prompt_tokens=result.num_prompt_tokens,
                num_cached_tokens=result.num_cached_tokens,
            )
            for result in results
        ]

    def engine_request(self, request: ChatRequest) -> Request:
        """The request in the engine's terms."""
        ids = request.prompt_ids
        if not ids:
            ids = self._format(request.thinking).prompt(list(request.messages))
        return Request(
            prompt_ids=tuple(ids),
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            top_k_logprobs=request.top_k_logprobs,
            prompt_logprobs_from=request.prompt_logprobs_from,
            shared_len=request.shared_len,
        )

    def _format(self, thinking: bool) -> ChatFormat:
        if thinking == self.chat_format.thinking:
            return self.chat_format
        if self._thinking_format is None:
            self._thinking_format = ChatFormat(self.chat_format.tokenizer, thinking=thinking, now=self.chat_format.now)
        return self._thinking_format
