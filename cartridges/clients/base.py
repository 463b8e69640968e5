"""What a client is: something that answers chats, with the distributions it drew them from.

A client is one server's dialect or the engine of this process. Nothing above this folder knows a dialect.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from cartridges.errors import InputError

if TYPE_CHECKING:
    from cartridges.cartridge import ModelIdentity
    from cartridges.conversation import TopK
    from cartridges.template import ChatFormat, Message


@dataclass(frozen=True)
class ChatRequest:
    """A prompt, as messages or as token ids; where both are given, the ids are those of the messages and go first.

    `shared_len` is a hint: the first so many ids are also the beginning of other requests. `prompt_logprobs_from` also
    asks for the distributions of the prompt's ids from that position on. `thinking` is for templates that know it.
    """

    messages: "Sequence[Message]" = ()
    prompt_ids: Sequence[int] | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k_logprobs: int = 0
    prompt_logprobs_from: int | None = None
    shared_len: int = 0
    thinking: bool = False

    def __post_init__(self) -> None:
        """Refuse what no client could answer."""
        if not self.messages and not self.prompt_ids:
            raise InputError("given a request without messages and without prompt_ids, expected one of them")
        if self.max_new_tokens < 1:
            raise InputError(f"given max_new_tokens={self.max_new_tokens}, expected 1 or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"given top_p={self.top_p}, expected a number above 0, up to 1")


@dataclass(frozen=True)
class ChatResult:
    """A reply. `token_ids` include the id that ended it where `finish_reason` is "stop".

    `logprobs` has a row for each of `token_ids`, `prompt_logprobs` for each asked id of the prompt; None where they
    were not asked for, or where this client cannot give them.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    logprobs: "TopK | None" = None
    prompt_logprobs: "TopK | None" = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0


class Client(Protocol):
    """Answers requests in bulk, results in their order; a result depends on its request alone."""

    @property
    def model_id(self) -> str:
        """The model's name."""
        ...

    @property
    def chat_format(self) -> "ChatFormat":
        """How messages become this model's token ids."""
        ...

    @property
    def window(self) -> int:
        """How many tokens a prompt and its reply may have together."""
        ...

    @property
    def identity(self) -> "ModelIdentity | None":
        """The model in full, None where the client knows just its name."""
        ...

    async def chat(
        self, requests: Sequence[ChatRequest], on_done: Callable[[int], None] | None = None
    ) -> list[ChatResult]:
        """The replies; `on_done` is called with the number of requests newly finished, maybe in another thread."""
        ...


class Dialect(Protocol):
    """How one kind of server is asked, and how its answers read. It talks to nobody itself."""

    @property
    def name(self) -> str:
        """What `--dialect` calls it."""
        ...

    @property
    def path(self) -> str:
        """Where requests are posted, below the server's URL."""
        ...

    def body(self, request: ChatRequest, model: str, chat: "ChatFormat") -> dict[str, Any]:
        """The JSON of a request to the server's `model`. Raises InputError for what this kind of server cannot do."""
        ...

    def result(self, answer: Any, request: ChatRequest, chat: "ChatFormat") -> ChatResult:
        """What the JSON of an answer says.

        Raises KeyError, TypeError, AttributeError or
        ValueError where it is of another dialect.
        """
        ...


def prompt_of(request: ChatRequest, chat: "ChatFormat") -> list[int]:
    """The token ids of a request's prompt, as this process writes them."""
    if request.prompt_ids:
        return list(request.prompt_ids)
    if request.thinking != chat.thinking:
        from cartridges.template import ChatFormat

        chat = ChatFormat(chat.tokenizer, thinking=request.thinking, now=chat.now)
    return chat.prompt(list(request.messages))
