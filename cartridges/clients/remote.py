"""The client of servers elsewhere: a dialect, a pool of servers, and the chat format of their model, which is ours.

Prompts are written here, by the tokenizer, wherever the dialect takes token ids; so a server gives what the engine of
this process would.
"""

import asyncio
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from cartridges.clients.base import ChatRequest, ChatResult, Dialect
from cartridges.clients.openai import OpenaiDialect
from cartridges.clients.pool import Pool, PoolConfig, Replica, base_url, said_by
from cartridges.clients.sglang import SglangDialect
from cartridges.clients.tokasaurus import TokasaurusDialect
from cartridges.clients.vllm import VllmDialect
from cartridges.errors import CartridgesError, InputError, unknown_name
from cartridges.template import ChatFormat

if TYPE_CHECKING:
    from cartridges.cartridge import ModelIdentity

DIALECTS = ("openai", "vllm", "sglang", "tokasaurus")
ASK_S = 30.0  # for a server to say what it is
NO_LIMIT = 2**31
FINISH_REASONS = ("stop", "length", "abort", "content_filter")


class RemoteClient:
    """Answers with the servers of `pool`, who call the model `served_name`."""

    def __init__(
        self,
        pool: Pool,
        dialect: Dialect,
        chat_format: ChatFormat,
        model_id: str,
        served_name: str = "",
        window: int = NO_LIMIT,
    ) -> None:
        self.pool, self.dialect = pool, dialect
        self.chat_format, self.window = chat_format, window
        self.model_id, self.served_name = model_id, served_name or model_id

    @property
    def identity(self) -> "ModelIdentity | None":
        """None: a server tells its name alone."""
        return None

    async def chat(
        self, requests: Sequence[ChatRequest], on_done: Callable[[int], None] | None = None
    ) -> list[ChatResult]:
        """The replies. The first request that no server answers ends all; what is under way then is cancelled."""
        bodies = [self.dialect.body(request, self.served_name, self.chat_format) for request in requests]
        results: list[ChatResult | None] = [None] * len(requests)

        room = asyncio.Semaphore(2 * len(self.pool.replicas) * self.pool.config.max_running)

        async def answer(client: Any, place: int) -> None:
            async with room:
                results[place] = await self._answer(client, requests[place], bodies[place])
            if on_done:
                on_done(1)

        async with self.pool.open() as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for place in range(len(requests)):
                        group.create_task(answer(client, place))
            except BaseExceptionGroup as failed:
                raise first_of(failed) from failed
        return [result for result in results if result is not None]

    async def _answer(self, client: Any, request: ChatRequest, body: dict[str, Any]) -> ChatResult:
        """The reply; one that its server gave up, as servers do when they are stopped, is asked for again."""
        attempt = 0
        while True:
            answer, replica = await self.pool.post(client, self.dialect.path, body, key_of(request))
            result = self._read(answer, replica, request)
            if result.finish_reason != "abort":
                return self._counted(result, replica, request)
            attempt += 1
            replica.num_retries += 1
            replica.last_error = "gave up a reply"
            if attempt == self.pool.config.max_attempts:
                raise InputError(f"{replica.url} gives up every reply; see its log")

    def _read(self, answer: Any, replica: Replica, request: ChatRequest) -> ChatResult:
        """What an answer says. Raises InputError where that is nothing sound."""
        try:
            result = self.dialect.result(answer, request, self.chat_format)
            if result.finish_reason not in FINISH_REASONS:
                raise ValueError(f"a reply that ended by {result.finish_reason!r}")
            if not all(0 <= token < NO_LIMIT for token in result.token_ids):
                raise ValueError("token ids out of range")
            if result.logprobs is not None and len(result.logprobs) != len(result.token_ids):
                raise ValueError(f"{len(result.logprobs)} rows of logprobs for {len(result.token_ids)} tokens")
            return result
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, ArithmeticError, RecursionError) as error:
            raise InputError(
                f"{replica.url} answered what the dialect {self.dialect.name} does not: {type(error).__name__} "
                f"{error}; is it the right --dialect? (known: {', '.join(DIALECTS)})"
            ) from error

    def _counted(self, result: ChatResult, replica: Replica, request: ChatRequest) -> ChatResult:
        """The result, noted as its server's. Raises InputError where it lacks what was asked for."""
        if request.prompt_logprobs_from is not None and result.prompt_logprobs is None:
            raise InputError(f"{replica.url} gives no logprobs of the prompt; set question_logprobs=false")
        if request.top_k_logprobs and result.logprobs is None:
            raise InputError(
                f"{replica.url} gives no logprobs by token id in the dialect {self.dialect.name}, so it cannot be a "
                "teacher; use --dialect vllm, sglang or tokasaurus where it is one"
            )
        replica.num_tokens_read += result.num_prompt_tokens
        replica.num_tokens_written += len(result.token_ids)
        return result


def key_of(request: ChatRequest) -> Hashable:
    """What requests with one shared prefix have in common; None where none is told."""
    if not request.shared_len:
        return None
    if request.prompt_ids:
        return tuple(request.prompt_ids[: request.shared_len])
    return str(request.messages[0])


def first_of(failed: BaseExceptionGroup) -> BaseException:
    """The error that tells most of a group: one of ours, where there is one."""
    errors: list[BaseException] = []
    for error in failed.exceptions:
        errors.append(first_of(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in errors if isinstance(error, CartridgesError)), errors[0])


def connect(
    urls: Sequence[str],
    dialect: str = "openai",
    model: str = "pocket",
    config: PoolConfig | None = None,
    api_key: str = "",
    served_name: str = "",
) -> RemoteClient:
    """A client of the servers at `urls`, which run `model`; of it just the tokenizer is loaded here.

    Under which name, and with which window, the first server that answers says, unless `served_name` is given. Raises
    InputError where none answers, or for an unknown dialect.
    """
    if dialect not in DIALECTS:
        raise InputError(unknown_name("dialect", dialect, DIALECTS))
    pool = Pool(urls, config, api_key)
    chat_format, model_id = chat_format_of(model)
    about = asked_about(pool, api_key)
    served = next((entry for entry in about if entry.get("id") == (served_name or model_id)), about[0] if about else {})
    window = served.get("max_model_len")
    made: Dialect
    if dialect == "vllm":
        made = VllmDialect(str(served.get("owned_by") or "vllm"))
    elif dialect == "sglang":
        made = SglangDialect()
    elif dialect == "tokasaurus":
        made = TokasaurusDialect()
    else:
        made = OpenaiDialect(asks_ids=served.get("owned_by") not in ("openai", "system", "openai-internal"))
    name = served_name or str(served.get("id") or model_id)
    return RemoteClient(pool, made, chat_format, model_id, name, int(window or window_of(model)))


def asked_about(pool: Pool, api_key: str = "") -> list[dict[str, Any]]:
    """What the first server that answers says of its models; nothing where it tells none.

    Raises InputError where none answers, or where the key is refused.
    """
    import httpx

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    failures = []
    for replica in pool.replicas:
        try:
            answer = httpx.get(f"{replica.url}/v1/models", headers=headers, timeout=ASK_S)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failures.append(f"{replica.url}: {type(error).__name__} {error}")
            continue
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise InputError(f"{replica.url} wants another key ({said_by(answer)}); give one with --api-key-file")
        try:
            entries = answer.json()["data"] if answer.status_code == httpx.codes.OK else []
            return [entry for entry in entries if isinstance(entry, dict)]
        except (ValueError, KeyError, TypeError):
            return []
    raise InputError(f"no server answers ({'; '.join(failures)}); start it, or give another --url")


def chat_format_of(model: str) -> tuple[ChatFormat, str]:
    """The chat format of a model and the id that it has here; its weights are not read. Raises InputError."""
    from pathlib import Path

    from transformers import AutoTokenizer

    from cartridges.model import POCKET, WEIGHTS

    source = str(WEIGHTS) if model == POCKET else model
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # what transformers and tokenizers raise for bad files has no common base
        first_line = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(f"no tokenizer at {model} ({type(error).__name__}: {first_line})") from error
    is_folder = model != POCKET and Path(model).is_dir()
    return ChatFormat(tokenizer), str(Path(model).resolve()) if is_folder else model


def window_of(model: str) -> int:
    """How many tokens the model's configuration says it can read; for servers that do not tell."""
    from transformers import AutoConfig

    from cartridges.model import POCKET, WEIGHTS

    try:
        config = AutoConfig.from_pretrained(str(WEIGHTS) if model == POCKET else model).get_text_config()
    except (OSError, ValueError):
        return NO_LIMIT
    return int(getattr(config, "max_position_embeddings", None) or NO_LIMIT)


__all__ = ["DIALECTS", "RemoteClient", "base_url", "connect"]
