"""What is known to end, or to mislead, a server that does not know of slots: each is refused, and the server lives."""

import json

import pytest

from cartridges.cartridge import MANIFEST, TENSORS, Manifest
from tests.vllm.serving import agree, expected

WINDOW = 512  # as the server was started
JSON = {"Content-Type": "application/json"}
PROMPT = [20, 21, 22, 23]


@pytest.fixture
def still_right(server, model, cartridges):
    """Afterwards the server answers as before."""
    yield
    assert server.is_alive()
    assert agree(server.complete("odd", PROMPT, 4), expected(model, cartridges["odd"], PROMPT, 4))


def refused(reply, status: int, *words: str) -> None:
    assert reply.status_code == status, reply.text
    message = reply.json()["error"]["message"]
    assert all(word in message for word in words), message


@pytest.mark.usefixtures("still_right")
@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "nobody"}, 404, ["unknown model 'nobody'"]),
        ({"model": "odd+nobody"}, 404, ["unknown model 'nobody'"]),
        ({"model": "../odd"}, 404, ["unknown model '../odd'"]),
        ({"model": "pocket", "cartridges": ["nobody"]}, 404, ["unknown cartridge"]),
        ({"model": "odd+odd"}, 400, ["twice"]),
        ({"model": "pocket", "cartridges": "odd"}, 400, ["expected a list"]),
        ({"model": "pocket", "cartridges": [None]}, 400, ["expected a list"]),
        ({"model": "odd", "cartridges": ["whole"]}, 400, ["expected the model 'pocket' with them"]),
        ({"prompt": [9] * (WINDOW - 101)}, 400, ["101 slots + 411 prompt tokens + 1 new tokens = 513"]),
        ({"prompt": [9] * (WINDOW - 1)}, 400, ["window"]),
        ({"prompt": [9] * 10, "max_tokens": 402}, 400, ["101 slots + 10 prompt tokens + 402 new tokens = 513"]),
        ({"prompt": "word " * 450}, 400, ["window"]),
        ({"prompt": ["short", "word " * 450]}, 400, ["window"]),
        ({"prompt": [[9], [9] * 460]}, 400, ["window"]),
        ({"model": "odd+whole+long", "prompt": [9] * 120}, 400, ["427 slots", "window"]),
        ({"model": "odd+whole+twin+long"}, 400, ["window"]),
        ({"prompt_logprobs": 1}, 400, ["prompt_logprobs is not supported"]),
        ({"prompt_logprobs": 0}, 400, ["prompt_logprobs is not supported"]),
        ({"echo": True, "logprobs": 1}, 400, ["echo"]),
        ({"repetition_penalty": 1.2}, 400, ["repetition_penalty"]),
        ({"use_beam_search": True, "n": 2}, 400, ["use_beam_search"]),
        ({"prompt_embeds": "AAAA"}, 400, ["prompt_embeds"]),
        ({"kv_transfer_params": {"cartridges": ["odd"]}}, 400, ["kv_transfer_params"]),
        ({"model": "pocket", "kv_transfer_params": {"cartridges": ["odd"]}}, 400, ["kv_transfer_params"]),
        ({"prompt": []}, 400, []),
        ({"max_tokens": -1}, 400, []),
        ({"temperature": float("nan")}, 400, []),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_refused(server, body, status, words):
    raw = json.dumps({"model": "odd", "prompt": PROMPT, **body})
    refused(server.http.post("/v1/completions", content=raw, headers=JSON), status, *words)


@pytest.mark.usefixtures("still_right")
def test_a_chat_too_long_is_refused(server):
    messages = [{"role": "user", "content": "word " * 420}]
    refused(server.post("/v1/chat/completions", model="odd", messages=messages), 400, "101 slots", "window")
    assert server.post("/v1/chat/completions", model="pocket", messages=messages, max_tokens=4).status_code == 200


@pytest.mark.usefixtures("still_right")
def test_a_picture_is_refused(server):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [part]}]
    refused(server.post("/v1/chat/completions", model="odd", messages=messages), 400, "expected text")


@pytest.mark.usefixtures("still_right")
@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'"odd"', b"null", b"\xff", b"[" * 5000])
def test_no_request_at_all(server, raw):
    reply = server.http.post("/v1/completions", content=raw, headers=JSON)
    assert 400 <= reply.status_code < 500


@pytest.mark.usefixtures("still_right")
@pytest.mark.parametrize("named", [["nobody"], 7, [7], ["long", "whole", "twin"]])
def test_what_gets_around_the_middleware_fails_alone(server, named):
    """Another route of vLLM's that takes the same parameters: only the connector stands in its way."""
    body = {
        "model": "pocket",
        "input": "word " * 200,
        "kv_transfer_params": {"cartridges": named},
        "max_output_tokens": 4,
    }
    assert server.post("/v1/responses", **body).status_code >= 400
    for good in ({}, {"cartridges": ["odd"]}):
        assert server.post("/v1/responses", **{**body, "kv_transfer_params": good}).status_code == 200


@pytest.mark.usefixtures("still_right")
@pytest.mark.parametrize("kind", ["truncated", "garbled", "no tensors", "no manifest", "bad manifest"])
def test_a_damaged_cartridge(server, cartridges, empty_root, kind):
    cartridges["whole"].save(empty_root / "late")
    tensors = empty_root / "late" / TENSORS
    raw = tensors.read_bytes()
    match kind:
        case "truncated":
            tensors.write_bytes(raw[:-100])
        case "garbled":
            tensors.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        case "no tensors":
            tensors.unlink()
        case "no manifest":
            (empty_root / "late" / MANIFEST).unlink()
        case "bad manifest":
            (empty_root / "late" / MANIFEST).write_text("{")
    refused(server.post("/v1/completions", model="late", prompt=PROMPT), 422, "the cartridge late cannot be")
    cartridges["whole"].save(empty_root / "late")
    assert server.post("/v1/completions", model="late", prompt=PROMPT).status_code == 200, "mended"


@pytest.mark.usefixtures("still_right")
def test_a_cartridge_of_another_model(server, cartridges, empty_root):
    cartridges["whole"].save(empty_root / "late")
    manifest = Manifest.read(empty_root / "late")
    other = manifest.model.model_copy(update={"weights_digest": "0" * 64})
    manifest.model_copy(update={"model": other}).write(empty_root / "late")
    refused(server.post("/v1/completions", model="late", prompt=PROMPT), 422, "other weights of the same shape")


@pytest.mark.usefixtures("still_right")
def test_a_cartridge_that_goes_away(server, cartridges, empty_root):
    cartridges["whole"].save(empty_root / "late")
    assert server.post("/v1/completions", model="late", prompt=PROMPT).status_code == 200
    (empty_root / "late").rename(empty_root / "gone.")
    refused(server.post("/v1/completions", model="late", prompt=PROMPT), 404, "unknown model 'late'")


@pytest.mark.usefixtures("still_right")
@pytest.mark.parametrize("num_prompt", [1, WINDOW - 101 - 1])
def test_a_reply_up_to_the_window(server, num_prompt):
    body = {"model": "odd", "prompt": [9] * num_prompt, "ignore_eos": True, "temperature": 0}
    reply = server.post("/v1/completions", **body, max_tokens=WINDOW - 101 - num_prompt).json()
    assert reply["usage"]["completion_tokens"] == WINDOW - 101 - num_prompt


@pytest.mark.usefixtures("still_right")
def test_a_chat_without_a_limit_ends_at_the_window(server):
    messages = [{"role": "user", "content": "word " * 20}]
    reply = server.post("/v1/chat/completions", model="long", messages=messages, ignore_eos=True, temperature=0).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["usage"]["total_tokens"] <= WINDOW - 200
