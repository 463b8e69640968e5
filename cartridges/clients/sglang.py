"""SGLang's own route `/generate`: token ids in and out, logprobs as (logprob, token id, text) in `meta_info`."""

from typing import TYPE_CHECKING, Any

from cartridges.clients.base import ChatRequest, ChatResult, prompt_of
from cartridges.clients.rows import top_k_rows
from cartridges.errors import InputError

if TYPE_CHECKING:
    from cartridges.conversation import TopK
    from cartridges.template import ChatFormat


class SglangDialect:
    """One model a server, so its name is not told."""

    name = "sglang"
    path = "/generate"

    def body(self, request: ChatRequest, model: str, chat: "ChatFormat") -> dict[str, Any]:
        """A generation. Raises InputError for logprobs at a temperature, which SGLang gives after it."""
        if request.top_k_logprobs and request.temperature not in (0.0, 1.0):
            raise InputError(
                f"given temperature={request.temperature} with logprobs; SGLang tells them after temperature, expected "
                "0 or 1; set answer.temperature=0"
            )
        sampling: dict[str, Any] = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_new_tokens": request.max_new_tokens,
            "stop_token_ids": sorted(chat.stop_ids),
        }
        if request.temperature > 0:
            sampling["sampling_seed"] = request.seed
        body: dict[str, Any] = {"input_ids": prompt_of(request, chat), "sampling_params": sampling, "stream": False}
        if request.top_k_logprobs:
            body |= {"return_logprob": True, "top_logprobs_num": request.top_k_logprobs, "logprob_start_len": -1}
        if request.prompt_logprobs_from is not None:
            body["logprob_start_len"] = request.prompt_logprobs_from - 1
        return body

    def result(self, answer: Any, request: ChatRequest, chat: "ChatFormat") -> ChatResult:
        """The reply, from its ids."""
        about = answer["meta_info"]
        ended = about["finish_reason"]
        finish_reason = ended["type"] if isinstance(ended, dict) else ended
        token_ids = answer.get("output_ids")
        if token_ids is None:
            token_ids = [entry[1] for entry in about["output_token_logprobs"]]
        logprobs = None
        if request.top_k_logprobs and about.get("output_top_logprobs") is not None:
            logprobs = _rows(about["output_top_logprobs"], request.top_k_logprobs)
        prompt_logprobs = None
        if request.prompt_logprobs_from is not None and about.get("input_top_logprobs") is not None:
            num_asked = len(prompt_of(request, chat)) - request.prompt_logprobs_from
            rows = about["input_top_logprobs"]
            prompt_logprobs = _rows(rows[len(rows) - num_asked :], request.top_k_logprobs)
        return ChatResult(
            text=chat.decode(token_ids),
            token_ids=[int(token) for token in token_ids],
            finish_reason=finish_reason,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            num_prompt_tokens=int(about.get("prompt_tokens") or 0),
            num_cached_tokens=int(about.get("cached_tokens") or 0),
        )


def _rows(rows: Any, k: int) -> "TopK":
    return top_k_rows([[(int(entry[1]), float(entry[0])) for entry in row] for row in rows], k)
