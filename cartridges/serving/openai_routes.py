"""The routes of the OpenAI API: models, chats, completions."""

import datetime
import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from cartridges.compose import composed_len
from cartridges.serving.desk import Desk
from cartridges.serving.errors import ApiError, ErrorReply, Json
from cartridges.serving.replies import Asked, Form, usage_of
from cartridges.serving.schema import ChatCompletionRequest, CompletionRequest, Sampling
from cartridges.serving.stream import EventStream, pieces, unless_gone

DEFAULT_TEMPERATURE = 1.0  # that of the OpenAI API
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply} for status in (400, 401, 403, 404, 405, 408, 409, 413, 429, 500, 503, 504)
}


def chat_prompts(desk: Desk, asked: ChatCompletionRequest, thinking: bool) -> list[list[int]]:
    """The token ids of a chat."""
    messages = [
        {"role": "system" if message.role == "developer" else message.role, "content": message.text}
        for message in asked.messages
    ]
    return [desk.chat_format(thinking).prompt(messages)]


def text_prompts(desk: Desk, asked: CompletionRequest) -> list[list[int]]:
    """The token ids of each prompt."""
    tokenizer: Any = desk.engine.model.tokenizer
    found = []
    for prompt in asked.prompts:
        ids = prompt
        if isinstance(prompt, str):
            ids = tokenizer(prompt, add_special_tokens=asked.add_special_tokens, verbose=False).input_ids
        if not ids:
            raise ApiError("given an empty prompt, expected text or token ids", "prompt")
        found.append(list(ids))
    if not found:
        raise ApiError("given no prompt, expected at least one", "prompt")
    return found


async def answer_chat(desk: Desk, request: Request, asked: ChatCompletionRequest) -> Response:
    """The reply to a chat."""
    thinking = bool(asked.chat_template_kwargs and asked.chat_template_kwargs.on)
    prepared = await desk.prepare(asked, lambda: chat_prompts(desk, asked, thinking), DEFAULT_TEMPERATURE)
    return await answer(desk, request, asked, prepared, form_of(desk, asked, chat=True))


def form_of(desk: Desk, asked: Sampling, chat: bool) -> Form:
    """How the reply is written."""
    told = Asked(asked.num_logprobs, asked.return_token_ids, asked.return_tokens_as_token_ids)
    return Form(asked.model, desk.texts, told, chat)


async def answer(desk: Desk, request: Request, asked: Sampling, prepared: Any, form: Form) -> Response:
    """The reply, whole or as a stream."""
    replies = desk.open(prepared, whole=not asked.stream)
    if asked.stream:
        return EventStream(pieces(replies, form, asked.wants_usage), replies.abort, desk.config.write_s)

    async def whole() -> Response:
        async for _ in replies.events():
            pass
        results = await replies.results()
        usage = usage_of(results, prepared.num_choices, prepared.num_slots)
        return Json(form.whole(results, usage, [request.prompt_ids for request in prepared.requests]))

    return await unless_gone(request.receive, whole(), replies.abort)


def openai_routes(desk: Desk) -> APIRouter:
    """The routes."""
    router = APIRouter(responses=ERRORS)
    started = int(time.time())

    def described(name: str) -> dict[str, Any]:
        about = {"id": name, "object": "model", "created": started, "owned_by": "cartridges", "root": desk.base}
        window = desk.engine.model.window
        if name == desk.base:
            return {**about, "parent": None, "max_model_len": window}
        manifests = [desk.engine.shelf.manifest(part) for part in name.split("+")]
        num_slots = composed_len(manifests)
        about |= {"parent": desk.base, "max_model_len": max(0, window - num_slots), "num_slots": num_slots}
        if len(manifests) > 1:
            return about
        cartridge = desk.engine.shelf.get([name])
        created = _time_of(cartridge.manifest.created, started)
        return {**about, "created": created, "num_bytes": cartridge.num_bytes, "digest": cartridge.digest}

    @router.get("/v1/models")
    async def models() -> Json:
        """The model alone, and with each cartridge."""
        names = [desk.base, *desk.engine.shelf.names()]
        return Json({"object": "list", "data": [described(name) for name in names]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Json:
        """One of them, or several cartridges that can be asked together, as a+b."""
        if name != desk.base:
            desk.check_names(name.split("+"), in_field=False)
        return Json(described(name))

    @router.post("/v1/chat/completions", response_model=None)
    async def chat_completions(asked: ChatCompletionRequest, request: Request) -> Response:
        """Go on with a chat."""
        return await answer_chat(desk, request, asked)

    @router.post("/v1/completions", response_model=None)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """Go on with a text."""
        prepared = await desk.prepare(asked, lambda: text_prompts(desk, asked), DEFAULT_TEMPERATURE)
        return await answer(desk, request, asked, prepared, form_of(desk, asked, chat=False))

    return router


def _time_of(created: str, otherwise: int) -> int:
    try:
        return int(datetime.datetime.fromisoformat(created).timestamp())
    except (ValueError, OverflowError):
        return otherwise
