"""The routes that clients of Tokasaurus ask: chats and completions with `cartridges: [{id, source, force_redownload}]`.

Ids are names on the shelf; nothing is downloaded. Token ids and logprobs travel as Base64 arrays in the text
`system_fingerprint`: `completion_ids`, `packed_chosen_logprobs` float32 [M], `packed_topk_indices` int32 and
`packed_topk_logprobs` float32 [M, K], each a list with one entry a reply.

Shapes: M new tokens, K top entries.
"""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from cartridges.engine.request import Result
from cartridges.serving.desk import Desk
from cartridges.serving.errors import ApiError, Json
from cartridges.serving.openai_routes import ERRORS, chat_prompts, form_of, text_prompts
from cartridges.serving.replies import usage_of
from cartridges.serving.schema import ChatCompletionRequest, CompletionRequest, Sampling, TemplateSwitches
from cartridges.serving.stream import unless_gone

ANY_MODEL = ("", "default")  # what these clients write where the server has just one


class TokasaurusChat(ChatCompletionRequest):
    """A chat as these clients write it."""

    model: str = Field(default="", max_length=512)
    logprobs_in_fingerprint: bool | None = None
    apply_chat_template_overrides: TemplateSwitches | None = None


class TokasaurusCompletion(CompletionRequest):
    """A text as these clients write it."""

    model: str = Field(default="", max_length=512)
    logprobs_in_fingerprint: bool | None = None


def tokasaurus_routes(desk: Desk) -> APIRouter:
    """The routes."""
    router = APIRouter(responses=ERRORS, prefix="/custom/cartridge")

    async def answer(asked: Any, request: Request, prompts: Any, chat: bool) -> Response:
        if asked.stream:
            raise ApiError("this route does not stream; ask /v1 for that", "stream", "unsupported_parameter")
        if asked.model in ANY_MODEL and asked.model not in desk.engine.shelf.names():
            asked = asked.model_copy(update={"model": desk.base})
        prepared = await desk.prepare(asked, lambda: prompts(asked), default_temperature=0.0)
        form = form_of(desk, asked, chat)
        replies = desk.open(prepared, whole=True)

        async def whole() -> Response:
            async for _ in replies.events():
                pass
            results = await replies.results()
            usage = usage_of(results, prepared.num_choices, prepared.num_slots)
            content = form.whole(results, usage, [request.prompt_ids for request in prepared.requests])
            content["system_fingerprint"] = fingerprint(results, asked)
            if asked.logprobs_in_fingerprint:
                for choice in content["choices"]:
                    choice["logprobs"] = None
            return Json(content)

        return await unless_gone(request.receive, whole(), replies.abort)

    @router.post("/chat/completions", response_model=None)
    async def chat_completions(asked: TokasaurusChat, request: Request) -> Response:
        """Go on with a chat."""
        switches = asked.apply_chat_template_overrides or asked.chat_template_kwargs
        thinking = bool(switches and switches.on)
        return await answer(asked, request, lambda chat: chat_prompts(desk, chat, thinking), chat=True)

    @router.post("/completions", response_model=None)
    async def completions(asked: TokasaurusCompletion, request: Request) -> Response:
        """Go on with a text."""
        return await answer(asked, request, lambda text: text_prompts(desk, text), chat=False)

    return router


def fingerprint(results: Sequence[Result], asked: Sampling) -> str:
    """Token ids, and logprobs where they are asked for and not refused in this form, as JSON."""
    told: dict[str, Any] = {"completion_ids": [result.token_ids for result in results]}
    k = asked.num_logprobs
    wanted = k is not None and getattr(asked, "logprobs_in_fingerprint", None) is not False
    told["packed_chosen_logprobs"] = [packed(result.chosen_logprobs) for result in results] if wanted else None
    rows = [result.logprobs for result in results if result.logprobs is not None] if wanted and k else []
    told["packed_topk_indices"] = [packed(row.ids, np.int32) for row in rows] or None
    told["packed_topk_logprobs"] = [packed(row.logprobs) for row in rows] or None
    return json.dumps(told)


def packed(numbers: Any, dtype: Any = np.float32) -> str:
    """The bytes of an array in Base64."""
    return base64.b64encode(np.ascontiguousarray(numbers, dtype).tobytes()).decode("ascii")
