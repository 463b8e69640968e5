"""vLLM, and our own server: token ids in, token ids out, over `/v1/completions`.

`prompt` is a list of ids, `return_token_ids` gives `token_ids` and `prompt_token_ids`, and with
`return_tokens_as_token_ids` the tokens of `logprobs` are written `token_id:17`. Logprobs are those before temperature.
"""

from typing import TYPE_CHECKING, Any

from cartridges.clients.base import ChatRequest, ChatResult, prompt_of
from cartridges.clients.rows import Malformed, id_of, top_k_rows

if TYPE_CHECKING:
    from cartridges.conversation import TopK
    from cartridges.template import ChatFormat


class VllmDialect:
    """`owner` is who the server says it is; vLLM alone is told which ids end a reply, our server knows."""

    name = "vllm"
    path = "/v1/completions"

    def __init__(self, owner: str = "vllm") -> None:
        self.owner = owner

    def body(self, request: ChatRequest, model: str, chat: "ChatFormat") -> dict[str, Any]:
        """A completion of the prompt's ids."""
        body: dict[str, Any] = {
            "model": model,
            "prompt": prompt_of(request, chat),
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            # a server fills in what is not told from the model's own generation_config.json
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": request.seed,
            "return_token_ids": True,
        }
        if request.top_k_logprobs:
            body |= {"logprobs": request.top_k_logprobs, "return_tokens_as_token_ids": True}
        if request.prompt_logprobs_from is not None:
            body["prompt_logprobs"] = request.top_k_logprobs
        if self.owner != "cartridges":
            body["stop_token_ids"] = sorted(chat.stop_ids)
        return body

    def result(self, answer: Any, request: ChatRequest, chat: "ChatFormat") -> ChatResult:
        """The reply, from its ids."""
        (choice,) = answer["choices"]
        num_prompt, num_cached = usage_of(answer)
        token_ids = choice.get("token_ids")
        told = choice.get("logprobs")
        if token_ids is None and told:
            token_ids = [id_of(token) for token in told["tokens"]]
        if token_ids is None:
            raise Malformed("a reply without token_ids, though return_token_ids was set")
        logprobs = None
        if request.top_k_logprobs and told:
            rows = [[(id_of(token), logprob) for token, logprob in row.items()] for row in told["top_logprobs"]]
            logprobs = top_k_rows(rows, request.top_k_logprobs)
        return ChatResult(
            text=chat.decode(token_ids),
            token_ids=[int(token) for token in token_ids],
            finish_reason=choice["finish_reason"],
            logprobs=logprobs,
            prompt_logprobs=self._of_prompt(choice, request),
            num_prompt_tokens=num_prompt,
            num_cached_tokens=num_cached,
        )

    @staticmethod
    def _of_prompt(choice: Any, request: ChatRequest) -> "TopK | None":
        """The rows of the prompt's ids, where they were asked for and told: a dict by id for each but the first."""
        told = choice.get("prompt_logprobs")
        if request.prompt_logprobs_from is None or told is None:
            return None
        rows = [
            [(int(token), entry["logprob"]) for token, entry in row.items()]
            for row in told[request.prompt_logprobs_from :]
        ]
        return top_k_rows(rows, request.top_k_logprobs)


def usage_of(answer: Any) -> tuple[int, int]:
    """The prompt's tokens, and how many of them were cached, in the form of OpenAI's `usage`."""
    usage = answer.get("usage") or {}
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return int(usage.get("prompt_tokens") or 0), int(cached or 0)
