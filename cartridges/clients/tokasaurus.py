"""Tokasaurus: completions whose token ids and logprobs travel as Base64 arrays in `system_fingerprint`.

That text is JSON: `completion_ids`, and `packed_topk_indices` int32 and `packed_topk_logprobs` float32, both [M, K],
one a reply. The server has a batch route that answers with a pickle; it is never asked, and nothing is unpickled.
"""

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from cartridges.clients.base import ChatRequest, ChatResult, prompt_of
from cartridges.clients.rows import Malformed, checked
from cartridges.clients.vllm import usage_of
from cartridges.errors import InputError

if TYPE_CHECKING:
    from cartridges.template import ChatFormat

PLAIN, WITH_CARTRIDGES = "/v1", "/custom/cartridge"


class TokasaurusDialect:
    """`root` is where the completions are: PLAIN, or WITH_CARTRIDGES on servers that know them."""

    name = "tokasaurus"

    def __init__(self, root: str = PLAIN) -> None:
        self.path = f"{root}/completions"

    def body(self, request: ChatRequest, model: str, chat: "ChatFormat") -> dict[str, Any]:
        """A completion of the prompt's ids. Raises InputError for logprobs of the prompt."""
        if request.prompt_logprobs_from is not None:
            raise InputError("Tokasaurus tells no logprobs of the prompt; set question_logprobs=false")
        if request.top_p < 1 and request.temperature > 0:
            raise InputError(f"given top_p={request.top_p}, which Tokasaurus does not know; set question.top_p=1")
        body: dict[str, Any] = {
            "model": model,
            "prompt": prompt_of(request, chat),
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        if request.top_k_logprobs:
            body |= {"logprobs": request.top_k_logprobs, "logprobs_in_fingerprint": True}
        return body

    def result(self, answer: Any, request: ChatRequest, chat: "ChatFormat") -> ChatResult:
        """The reply, from the arrays."""
        (choice,) = answer["choices"]
        num_prompt, num_cached = usage_of(answer)
        told = json.loads(answer["system_fingerprint"])
        (token_ids,) = told["completion_ids"]
        logprobs = None
        if request.top_k_logprobs and told.get("packed_topk_indices"):
            shape = (len(token_ids), request.top_k_logprobs)
            (ids,), (numbers,) = told["packed_topk_indices"], told["packed_topk_logprobs"]
            logprobs = checked(unpacked(ids, "<i4", shape), unpacked(numbers, "<f4", shape))
        return ChatResult(
            text=chat.decode(token_ids),
            token_ids=[int(token) for token in token_ids],
            finish_reason=choice["finish_reason"],
            logprobs=logprobs,
            num_prompt_tokens=num_prompt,
            num_cached_tokens=num_cached,
        )


def unpacked(text: str, dtype: str, shape: tuple[int, int]) -> np.ndarray:
    """The array [M, K] in Base64. Raises Malformed for one of another size."""
    raw = base64.b64decode(text, validate=True)
    if len(raw) != np.dtype(dtype).itemsize * shape[0] * shape[1]:
        raise Malformed(f"an array of {len(raw)} bytes for {shape[0]} tokens and {shape[1]} entries of {dtype[1:]}")
    return np.frombuffer(raw, dtype).reshape(shape)
