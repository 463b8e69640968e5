"""What may be asked: requests in the form of the OpenAI API, with a few names of vLLM's and Tokasaurus'.

What is not known here is refused, never ignored. Parameters of the OpenAI API that the engine has no part for are
accepted where their value asks for nothing.
"""

from abc import abstractmethod
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from cartridges.engine.request import MAX_STOP_LEN, MAX_STOPS
from cartridges.errors import half_pair, unknown_name
from cartridges.serving.errors import ApiError

# Parameters without a part in the engine, and the values of them that ask for nothing.
NEUTRAL: dict[str, list[Any]] = {
    "frequency_penalty": [0],
    "presence_penalty": [0],
    "repetition_penalty": [1],
    "min_p": [0],
    "logit_bias": [{}],
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "functions": [[]],
    "function_call": ["none", "auto"],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
    "audio": [],
    "prediction": [],
    "web_search_options": [],
    "reasoning_effort": [],
    "verbosity": [],
    "moderation": [],
    "store": [False],
    "service_tier": ["auto", "default"],
    "best_of": [1],
    "echo": [False],
    "suffix": [""],
}
WITHOUT_EFFECT = {
    *("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    "parallel_tool_calls",
}
NAME_LEN = 512
COMPLETION_TOKENS = 16  # as OpenAI and vLLM have it


def _whole_characters(text: str) -> str:
    """The text. Raises ValueError where it has half of a surrogate pair, which JSON can write and no text holds."""
    if broken := half_pair(text):
        raise ValueError(f"text with {broken}")
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
Name = Annotated[str, StringConstraints(max_length=NAME_LEN)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LEN), AfterValidator(_whole_characters)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Strict(BaseModel):
    """Numbers are numbers and texts are texts."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class TextPart(Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(Strict):
    """A message of a chat. `developer` is another word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, given: Any) -> Any:
        """Clients write out what is not there."""
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if key == "content" or value not in (None, [])}

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Strict):
    """How a stream is told."""

    include_usage: bool = False
    include_obfuscation: bool = False


class NamedCartridge(Strict):
    """A cartridge as clients of Tokasaurus name it. It is looked up by `id`; nothing is ever downloaded."""

    id: Name
    source: Literal["wandb", "local", "huggingface"] | None = None
    force_redownload: Literal[False] = False


class Sampling(Strict):
    """What chats and completions have in common."""

    model: Name
    cartridges: list[Name | NamedCartridge] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    n: int | None = Field(default=None, ge=1, lt=2**31)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Raises ApiError for a parameter that is not known, or known and not offered."""
        if not isinstance(given, dict):
            return given
        kept = {}
        for name, value in given.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name in NEUTRAL:
                if value is not None and not any(value == neutral for neutral in NEUTRAL[name]):
                    raise ApiError(
                        f"{name} is not supported by this server; leave it out", name, "unsupported_parameter"
                    )
            elif name not in WITHOUT_EFFECT:
                message = unknown_name("parameter", str(name)[:100], [*cls.model_fields, *NEUTRAL])
                raise ApiError(message, str(name)[:100], "unknown_parameter")
        return kept

    @model_validator(mode="after")
    def _streams(self) -> Self:
        """Raises ApiError for what is told of a stream where none is asked for."""
        if self.stream_options is not None and not self.stream:
            raise ApiError("given stream_options without stream=true, expected both", "stream_options")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def names(self) -> list[str]:
        """Of `cartridges`, in their order."""
        return [given if isinstance(given, str) else given.id for given in self.cartridges or []]

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def new_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def num_prompts(self) -> int:
        return 1

    @property
    def usual_tokens(self) -> int | None:
        """How many new tokens a request means that names no number; None for what the server's limits say."""
        return None

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens are asked for beside the chosen one; None where no logprobs are."""


class TemplateSwitches(Strict):
    """Switches that chat templates know."""

    enable_thinking: bool | None = None
    thinking: bool | None = None

    @property
    def on(self) -> bool:
        return bool(self.enable_thinking or self.thinking)


class ChatCompletionRequest(Sampling):
    """A chat to be gone on with."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, lt=2**31)
    chat_template_kwargs: TemplateSwitches | None = None

    @property
    def new_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise ApiError("given top_logprobs without logprobs=true, expected both", "top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampling):
    """A text, or token ids, to be gone on with; or several."""

    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]]
    logprobs: int | None = Field(default=None, ge=0, lt=2**31)
    add_special_tokens: bool = True

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Each text or list of ids."""
        given: Any = self.prompt
        return given if isinstance(given, list) and not (given and isinstance(given[0], int)) else [given]

    @property
    def num_prompts(self) -> int:
        return len(self.prompts)

    @property
    def usual_tokens(self) -> int | None:
        return COMPLETION_TOKENS

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs


class CartridgeToAdd(Strict):
    """A folder of a cartridge, or of a build with one, below one of the roots that the server was given."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=NAME_LEN)]
    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
