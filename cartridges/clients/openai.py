"""Any OpenAI-compatible server, over `/v1/chat/completions`: messages in, text and logprobs out.

Token ids come from `token_ids` or from tokens written `token_id:17`, which vLLM and our own server give when asked. A
server that knows neither gives text alone: it can write questions, but it cannot be a teacher.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cartridges.clients.base import ChatRequest, ChatResult
from cartridges.clients.rows import TOKEN_ID, id_of, top_k_rows
from cartridges.clients.vllm import usage_of
from cartridges.errors import InputError

if TYPE_CHECKING:
    from cartridges.template import ChatFormat, Message

MAX_TOP_LOGPROBS = 20


class OpenaiDialect:
    """`asks_ids`: whether the server takes the two fields that ask for token ids; OpenAI's own refuses them."""

    name = "openai"
    path = "/v1/chat/completions"

    def __init__(self, asks_ids: bool = True) -> None:
        self.asks_ids = asks_ids

    def body(self, request: ChatRequest, model: str, chat: "ChatFormat") -> dict[str, Any]:
        """A chat of the messages. Raises InputError for prompts that are given as ids alone."""
        if not request.messages:
            raise InputError("given a prompt as token ids alone, expected messages; use --dialect vllm for token ids")
        if request.prompt_logprobs_from is not None:
            raise InputError(
                "chats tell no logprobs of the prompt; set question_logprobs=false, or use --dialect vllm or sglang"
            )
        body: dict[str, Any] = {
            "model": model,
            "messages": list(request.messages),
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        if request.top_p < 1:  # some models refuse it, whatever it is
            body["top_p"] = request.top_p
        if self.asks_ids:
            body |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
        if request.top_k_logprobs:
            body |= {"logprobs": True, "top_logprobs": min(request.top_k_logprobs, MAX_TOP_LOGPROBS)}
        if request.thinking != chat.thinking:
            body["chat_template_kwargs"] = {"enable_thinking": request.thinking}
        return body

    def result(self, answer: Any, request: ChatRequest, chat: "ChatFormat") -> ChatResult:
        """The reply. Without token ids from the server there are none here, and no logprobs."""
        (choice,) = answer["choices"]
        num_prompt, num_cached = usage_of(answer)
        check_prompt(choice.get("prompt_token_ids") or answer.get("prompt_token_ids"), request)
        content = (choice.get("logprobs") or {}).get("content") or []
        by_id = bool(content) and all(entry["token"].startswith(TOKEN_ID) for entry in content)
        token_ids = choice.get("token_ids") or ([id_of(entry["token"]) for entry in content] if by_id else [])
        logprobs = None
        if request.top_k_logprobs and by_id:
            rows = [[(id_of(top["token"]), top["logprob"]) for top in entry["top_logprobs"]] for entry in content]
            logprobs = top_k_rows(rows, request.top_k_logprobs)
        text = choice["message"].get("content") or ""
        return ChatResult(
            text=chat.decode(token_ids) if token_ids else text,
            token_ids=[int(token) for token in token_ids],
            finish_reason=choice["finish_reason"],
            logprobs=logprobs,
            num_prompt_tokens=num_prompt,
            num_cached_tokens=num_cached,
        )


def check_prompt(theirs: Sequence[int] | None, request: ChatRequest) -> None:
    """Raises InputError where the server wrote the messages otherwise than they are written here."""
    if theirs is not None and request.prompt_ids and list(theirs) != list(request.prompt_ids):
        raise InputError(
            f"the server writes a chat as {len(theirs)} token ids that are not the {len(request.prompt_ids)} of the "
            "tokenizer here; use --dialect vllm, which sends token ids, or the tokenizer of the server's model"
        )


def stream_chat(
    url: str,
    messages: "Sequence[Message]",
    model: str,
    cartridges: Sequence[str] = (),
    max_new_tokens: int = 256,
    api_key: str = "",
    timeout_s: float = 300.0,
) -> Iterator[str]:
    """The likeliest reply of a server in pieces, as they come. Raises InputError with what the server says."""
    import httpx

    from cartridges.clients.pool import base_url, said_by

    body: dict[str, Any] = {
        "model": model,
        "messages": list(messages),
        "max_tokens": max_new_tokens,
        "temperature": 0.0,
        "stream": True,
    }
    if cartridges:
        body["cartridges"] = list(cartridges)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with (
            httpx.Client(timeout=timeout_s, headers=headers) as client,
            client.stream("POST", base_url(url) + OpenaiDialect.path, json=body) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                answer.read()
                raise InputError(f"{url} refused the request ({answer.status_code}): {said_by(answer)}")
            for line in _lines(answer.iter_bytes()):
                yield from _piece(line, url)
    except httpx.HTTPError as error:
        raise InputError(f"{url} cannot be reached or went away ({type(error).__name__}: {error})") from error


def _lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream. They end at line feeds alone: text may hold what else is taken for the end of a line."""
    rest = b""
    for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        yield from lines
    yield rest


def _piece(line: bytes, url: str) -> Iterator[str]:
    """The text in one line of a stream, if it has any."""
    data = line.removeprefix(b"data:").strip().decode(errors="replace")
    if not line.startswith(b"data:") or not data or data == "[DONE]":
        return
    try:
        content = json.loads(data)
        error = content.get("error")
        text = "" if error else "".join(c.get("delta", {}).get("content") or "" for c in content.get("choices", []))
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{url} sent what is no stream of a chat ({data[:80]}); is it OpenAI-compatible?") from error
    if error:
        raise InputError(f"{url} ended the reply: {error.get('message') if isinstance(error, dict) else error}")
    if text:
        yield text
