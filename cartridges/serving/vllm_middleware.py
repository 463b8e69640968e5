"""Cartridges by name on stock vLLM: `--middleware cartridges.serving.vllm_middleware.CartridgeMiddleware`.

A request names cartridges as its model, or in the field `cartridges`; what reaches vLLM is a plain request for the base
model whose `kv_transfer_params` tell the connector which cartridges to put in front. What vLLM would answer wrongly
because it does not know of the slots is refused here, before it gets there. Everything else is vLLM's own.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from cartridges.errors import CartridgesError, unknown_name
from cartridges.serving.catalogue import KEY, Catalogue, Selection
from cartridges.serving.errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CHAT, COMPLETIONS, MODELS, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize"
MAX_BODY_BYTES = 64 << 20
FREE_BODY_BYTES = 1 << 20  # that are read of anybody
MAX_NAMED = 16  # cartridges in one request
TEMPLATE_MARGIN = 1024  # tokens that a chat template may add, where a request is not counted because it is short
TEXT_PARTS = {"text", "input_text", "output_text", "refusal", "thinking"}
# What vLLM would compute from the placeholders that stand for the slots, or without the slots; and the harmless values.
NOT_WITH_CARTRIDGES: dict[str, tuple[list[Any], str]] = {
    "prompt_logprobs": ([None], "vLLM computes them without the cartridge"),
    "repetition_penalty": ([None, 1], "vLLM counts the tokens that stand for the slots; use frequency_penalty"),
    "use_beam_search": ([None, False], "vLLM searches without the cartridge"),
    "prompt_embeds": ([None], "give the prompt as text or token ids"),
}
# What a chat's number of tokens depends on.
TEMPLATE_FIELDS = (
    "messages add_generation_prompt continue_final_message add_special_tokens chat_template chat_template_kwargs tools"
).split()


class CartridgeMiddleware:
    """An ASGI application in front of vLLM's."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._catalogue: Catalogue | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what vLLM must not see, list the cartridges among the models, change what names one."""
        path = str(scope.get("path", "")).removeprefix(scope.get("root_path", ""))
        asked = (scope.get("method"), path) if scope["type"] == "http" else None
        if asked == ("GET", MODELS):
            return await self._list_models(scope, receive, send)
        if asked not in (("POST", CHAT), ("POST", COMPLETIONS)):
            return await self.app(scope, receive, send)
        try:
            raw = await _read(receive, lambda: self._lets_in(scope))
        except ConnectionResetError:
            return None
        except ApiError as refused:
            return await self._refuse(refused, scope, receive, send)
        try:
            changed = await self._changed(raw, path, scope)
        except ApiError as refused:
            return await self._refuse(refused, scope, receive, send)
        await self.app(_with_length(scope, len(changed)), _replayed(changed, receive), send)

    async def _changed(self, raw: bytes, path: str, scope: Scope) -> bytes:
        """The body for vLLM. Raises ApiError for what it must not see."""
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            return raw  # vLLM says what is wrong with it
        if not isinstance(body, dict):
            return raw
        if body.get("kv_transfer_params") is not None:
            raise ApiError("kv_transfer_params are set by this server; name cartridges instead", "kv_transfer_params")
        served = _served_names(scope)
        names = selected_names(body, served)
        if names is None:
            return raw
        body.pop("cartridges", None)
        if not names:
            return json.dumps(body).encode()
        model = str(body.get("model") or next(iter(served)))
        selection = await asyncio.to_thread(select, self._of(scope), names, model, served)
        check_supported(body)
        body |= {"model": next(iter(served)), "kv_transfer_params": {KEY: names}, "repetition_penalty": 1.0}
        await self._check_room(body, len(raw), path, selection, scope)
        return json.dumps(body).encode()

    def _of(self, scope: Scope) -> Catalogue:
        if self._catalogue is None:
            config = scope["app"].state.vllm_config.kv_transfer_config
            self._catalogue = Catalogue.from_config(config.kv_connector_extra_config if config else {})
        return self._catalogue

    async def _check_room(
        self, body: dict[str, Any], num_bytes: int, path: str, selection: Selection, scope: Scope
    ) -> None:
        """Raises ApiError where slots, prompt and reply are too long: vLLM's own check does not know of the slots."""
        window = scope["app"].state.vllm_config.model_config.max_model_len
        given = body.get("max_completion_tokens") or body.get("max_tokens")
        num_new = max(1, given) if isinstance(given, int) else 1
        if selection.num_slots + num_bytes + TEMPLATE_MARGIN + num_new <= window:
            return  # a token is at least a byte
        num_prompt = await self._count(body, path, scope)
        if num_prompt is None:
            return  # vLLM says what is wrong with it
        if isinstance(limit := body.get("truncate_prompt_tokens"), int) and limit > 0:
            num_prompt = min(num_prompt, limit)
        total = selection.num_slots + num_prompt + num_new
        if total > window:
            raise ApiError(
                f"the request has {selection.num_slots} slots + {num_prompt} prompt tokens + {num_new} new tokens = "
                f"{total}, expected at most {window}, the window of {body['model']}; give a shorter prompt or fewer "
                "new tokens",
                "prompt" if path == COMPLETIONS else "messages",
                "context_length_exceeded",
            )

    async def _count(self, body: dict[str, Any], path: str, scope: Scope) -> int | None:
        """How many tokens the prompt has, the longest one where there are several; None where vLLM refuses it."""
        if path == CHAT:
            return await self._tokenized({key: body[key] for key in TEMPLATE_FIELDS if key in body}, body, scope)
        prompt = body.get("prompt")
        several = isinstance(prompt, list) and not all(isinstance(part, int) for part in prompt)
        counts: list[int | None] = []
        for part in prompt if several and isinstance(prompt, list) else [prompt]:
            if isinstance(part, list):
                counts.append(len(part))
            elif isinstance(part, str):
                special = {"add_special_tokens": body.get("add_special_tokens", True)}
                counts.append(await self._tokenized({"prompt": part, **special}, body, scope))
            else:
                return None
        return max((count for count in counts if count is not None), default=None) if None not in counts else None

    async def _tokenized(self, text: dict[str, Any], body: dict[str, Any], scope: Scope) -> int | None:
        raw = json.dumps({**text, "model": body["model"]}).encode()
        status, _, reply = await self._ask(scope, "POST", TOKENIZE, raw)
        count = json.loads(reply).get("count") if status == 200 else None
        return count if isinstance(count, int) else None

    async def _ask(self, scope: Scope, method: str, path: str, raw: bytes = b"") -> tuple[int, Any, bytes]:
        """Status, headers and body of what vLLM answers, with the headers of the request in `scope`."""
        inner = {**_with_length(scope, len(raw)), "method": method, "path": scope.get("root_path", "") + path}
        inner |= {"raw_path": inner["path"].encode(), "query_string": b""}
        gathered: list[Message] = []

        async def gather(message: Message) -> None:
            gathered.append(message)

        async def connected() -> Message:
            return await asyncio.Future()

        await self.app(inner, _replayed(raw, connected), gather)
        start = next(message for message in gathered if message["type"] == "http.response.start")
        return start["status"], start.get("headers", []), b"".join(message.get("body", b"") for message in gathered)

    async def _lets_in(self, scope: Scope) -> bool:
        """Whether vLLM lets this client in."""
        status, _, _ = await self._ask(scope, "GET", MODELS)
        return status not in (401, 403)

    async def _refuse(self, refused: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the error, or, to those whom vLLM would not let in, as it does."""
        status, headers, reply = await self._ask(scope, "GET", MODELS)
        if status not in (401, 403):
            return await refused.response()(scope, receive, send)
        await _answer(send, status, headers, reply)

    async def _list_models(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The models that vLLM lists, and every cartridge there is."""
        status, headers, reply = await self._ask(scope, "GET", MODELS)
        if status == 200:
            listed = json.loads(reply)
            base = listed["data"][0]
            names = await asyncio.to_thread(self._of(scope).names)
            mine = [{**base, "id": name, "parent": base["id"]} for name in names]
            reply = json.dumps({**listed, "data": [*listed["data"], *mine]}).encode()
        await _answer(send, status, headers, reply)


def select(catalogue: Catalogue, names: list[str], model: str, served: dict[str, bool]) -> Selection:
    """What the names stand for. Raises ApiError: 404 for unknown ones, 422 where one cannot be used."""
    in_field = model in served
    known = catalogue.names()
    for name in names:
        if name not in known:
            kind, code = ("cartridge", "cartridge_not_found") if in_field else ("model", "model_not_found")
            message = unknown_name(kind, name[:128], known if in_field else [*served, *known])
            raise ApiError(message, "cartridges" if in_field else "model", code, 404)
    if len(set(names)) < len(names):
        raise ApiError("given a cartridge twice, expected different ones", "cartridges" if in_field else "model")
    try:
        return catalogue.find(names)
    except CartridgesError as error:
        raise ApiError(str(error), "cartridges" if in_field else "model", "cartridge_unusable", 422) from error


def selected_names(body: dict[str, Any], served: dict[str, bool]) -> list[str] | None:
    """The cartridges that a request names, in order; empty for none of them, None for what vLLM is to answer itself.

    `served` are vLLM's own models, and of each whether it is the base model. Raises ApiError.
    """
    model, given = body.get("model"), body.get("cartridges")
    of_field = _of_field(given)
    if model is not None and not isinstance(model, str):
        return None
    if not model or model in served:
        if of_field and model and not served[model]:
            raise ApiError(f"{model} is an adapter, and cartridges belong to the base model; name that", "model")
        return of_field if "cartridges" in body else None
    of_model = model.split("+")
    if of_field:
        base = next(iter(served))
        raise ApiError(
            f"given the model {model[:80]!r} and cartridges, expected the model {base!r} with them", "cartridges"
        )
    if len(of_model) > MAX_NAMED:
        raise ApiError(f"given {len(of_model)} cartridges, expected at most {MAX_NAMED}", "model")
    return of_model


def _of_field(given: Any) -> list[str]:
    """Names, or the objects in which clients of Tokasaurus put them."""
    if given is None:
        return []
    ids = [part.get("id") if isinstance(part, dict) else part for part in given] if isinstance(given, list) else [None]
    if not all(isinstance(name, str) for name in ids) or len(ids) > MAX_NAMED:
        raise ApiError(
            f"given cartridges={str(given)[:140]}, expected a list of at most {MAX_NAMED} names", "cartridges"
        )
    return [str(name) for name in ids]


def check_supported(body: dict[str, Any]) -> None:
    """Raises ApiError for what vLLM would compute wrongly behind a cartridge."""
    for name, (harmless, reason) in NOT_WITH_CARTRIDGES.items():
        if not any(body.get(name) == value for value in harmless):
            raise ApiError(f"{name} is not supported with a cartridge: {reason}", name, "unsupported_parameter")
    if body.get("echo") and body.get("logprobs") is not None:
        raise ApiError(
            "echo with logprobs is not supported with a cartridge: vLLM computes them without it", "echo",
            "unsupported_parameter",
        )  # fmt: skip
    for message in body["messages"] if isinstance(body.get("messages"), list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and part.get("type", "text") not in TEXT_PARTS:
                raise ApiError(
                    f"given a part of the type {str(part['type'])[:40]!r}, expected text: cartridges stand before text",
                    "messages",
                )


def _served_names(scope: Scope) -> dict[str, bool]:
    """The models of vLLM itself, the base model first, and of each whether it is the base model."""
    models = scope["app"].state.openai_serving_models
    return {path.name: True for path in models.base_model_paths} | dict.fromkeys(models.lora_requests, False)


async def _read(receive: Receive, lets_in: Callable[[], Awaitable[bool]]) -> bytes:
    """The body. Raises ApiError for one that is too large, ConnectionResetError where the client went away.

    Whether the client is let in is asked before more than FREE_BODY_BYTES of it are held.
    """
    pieces: list[bytes] = []
    num_bytes, more, is_known = 0, True, False
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the client went away")
        pieces.append(message.get("body", b""))
        num_bytes += len(pieces[-1])
        if num_bytes > FREE_BODY_BYTES and not is_known:
            is_known = await lets_in()
            if not is_known:
                raise ApiError("the client is not let in", status=401)
        if num_bytes > MAX_BODY_BYTES:
            raise ApiError(f"given a body of more than {MAX_BODY_BYTES} bytes, expected at most so many", status=413)
        more = message.get("more_body", False)
    return b"".join(pieces)


def _replayed(raw: bytes, receive: Receive) -> Receive:
    """What gives `raw` first, and then what `receive` does."""
    first: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


def _with_length(scope: Scope, num_bytes: int) -> Scope:
    headers = [pair for pair in scope["headers"] if pair[0].lower() not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*headers, (b"content-length", str(num_bytes).encode())]}


async def _answer(send: Send, status: int, headers: Any, reply: bytes) -> None:
    kept = [pair for pair in headers if pair[0].lower() != b"content-length"]
    length = (b"content-length", str(len(reply)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*kept, length]})
    await send({"type": "http.response.body", "body": reply})
