"""The middleware in front of an application that answers with what reaches it; tests/vllm has a real vLLM behind it."""

import asyncio
import json
from contextlib import nullcontext
from types import SimpleNamespace

import httpx
import pytest

from cartridges.initialization import InitializeConfig, initialize
from cartridges.serving.catalogue import Catalogue
from cartridges.serving.errors import ApiError
from cartridges.serving.vllm_middleware import FREE_BODY_BYTES, MAX_BODY_BYTES, CartridgeMiddleware, _read
from tests.architectures import tiny

WINDOW = 64
KEY = {"Authorization": "Bearer key"}
LISTED = {"object": "list", "data": [{"id": "base", "object": "model", "owned_by": "vllm", "parent": None}]}


async def behind(scope, receive, send):
    """Tells what it was asked; a word is a token. Those without a key are not let in."""
    raw, more = b"", True
    while more:
        message = await receive()
        raw, more = raw + message.get("body", b""), message.get("more_body", False)
    headers = dict(scope["headers"])
    assert int(headers.get(b"content-length", 0)) == len(raw)
    status, body = 200, raw
    if scope["path"].startswith("/v1") and headers.get(b"authorization") != b"Bearer key":
        status, body = 401, b'{"error": "Unauthorized"}'
    elif scope["path"] == "/v1/models":
        body = json.dumps(LISTED).encode()
    elif scope["path"] == "/tokenize":
        asked = json.loads(raw)
        text = asked.get("prompt") or " ".join(message["content"] for message in asked["messages"])
        status = 200 if isinstance(text, str) else 400
        body = json.dumps({"count": len(text.split())} if status == 200 else {"error": "no text"}).encode()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def folders(tiny_tokenizer, tmp_path_factory):
    top = tmp_path_factory.mktemp("cartridges")
    model = tiny("llama", tiny_tokenizer)
    for name, num_slots in (("a", 20), ("b", 10)):
        text = f"some words about {name} " * 20
        initialize(model, None, num_slots, InitializeConfig(kind="text", text=text)).save(top / name)
    return Catalogue.of(model.identity, {name: top / name for name in "ab"})


@pytest.fixture
def asked(folders):
    """Asks as a client does: method, path and the body, as JSON or as bytes; gives status and JSON, or bytes."""
    transfer = SimpleNamespace(kv_connector_extra_config=folders.to_config())
    config = SimpleNamespace(kv_transfer_config=transfer, model_config=SimpleNamespace(max_model_len=WINDOW))
    models = SimpleNamespace(base_model_paths=[SimpleNamespace(name="base")], lora_requests={"adapter": None})
    state = SimpleNamespace(vllm_config=config, openai_serving_models=models)
    middleware = CartridgeMiddleware(behind)

    async def app(scope, receive, send):
        await middleware({**scope, "app": SimpleNamespace(state=state)}, receive, send)

    def ask(path="/v1/completions", body=None, method="POST", headers=KEY):
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                return await http.request(method, path, content=raw, headers=headers)

        reply = asyncio.run(send())
        return reply.status_code, reply.content if isinstance(body, bytes) and method == "POST" else reply.json()

    return ask


def reached(reply) -> dict:
    assert reply[0] == 200, reply
    return reply[1]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"model": "a"}, ["a"]),
        ({"model": "a+b"}, ["a", "b"]),
        ({"model": "base", "cartridges": ["b", "a"]}, ["b", "a"]),
        ({"cartridges": ["b"]}, ["b"]),
        ({"model": "base", "cartridges": [{"id": "b", "source": "local", "force_redownload": True}]}, ["b"]),
    ],
)
def test_names_become_parameters_of_a_plain_request(asked, body, names):
    given = reached(asked(body={**body, "prompt": "x", "seed": 3}))
    assert given["kv_transfer_params"] == {"cartridges": names}
    assert (given["model"], given["prompt"], given["seed"]) == ("base", "x", 3)
    assert given["repetition_penalty"] == 1, "whatever the model's own defaults are"
    assert "cartridges" not in given


@pytest.mark.parametrize(
    "body",
    [
        {"model": "base", "prompt": "x", "repetition_penalty": 2},
        {"model": "adapter"},
        {"prompt": "x"},
        {"model": 3},
        [3],
    ],
)
def test_other_requests_pass_as_they_are(asked, body):
    assert reached(asked(body=body)) == body


def test_an_empty_field_is_no_cartridge(asked):
    assert reached(asked(body={"model": "base", "cartridges": []})) == {"model": "base"}


def test_other_paths_pass_as_they_are(asked):
    assert reached(asked("/v1/embeddings", {"model": "a"})) == {"model": "a"}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "c"}, 404, "unknown model 'c'; known: a, adapter, b, base"),
        ({"model": "a/../a"}, 404, "unknown model 'a/../a'"),
        ({"model": "base", "cartridges": ["c"]}, 404, "unknown cartridge 'c'; known: a, b"),
        ({"model": "a", "cartridges": ["b"]}, 400, "given the model 'a' and cartridges, expected the model 'base'"),
        ({"model": "adapter", "cartridges": ["b"]}, 400, "adapter is an adapter"),
        ({"model": "a+a"}, 400, "given a cartridge twice"),
        ({"model": "+".join("a" * 17)}, 400, "given 17 cartridges, expected at most 16"),
        ({"model": "base", "cartridges": {"id": "a"}}, 400, "expected a list of at most 16 names"),
        ({"model": "base", "cartridges": [{}]}, 400, "expected a list of at most 16 names"),
        ({"model": "base", "kv_transfer_params": {}}, 400, "kv_transfer_params are set by this server"),
        ({"model": "a", "prompt_logprobs": 0}, 400, "prompt_logprobs is not supported with a cartridge"),
        ({"model": "a", "repetition_penalty": 1.1}, 400, "repetition_penalty is not supported"),
        ({"model": "a", "use_beam_search": True}, 400, "use_beam_search is not supported"),
        ({"model": "a", "prompt_embeds": "AA"}, 400, "prompt_embeds is not supported"),
        ({"model": "a", "echo": True, "logprobs": 0}, 400, "echo with logprobs is not supported"),
        ({"model": "a", "messages": [{"content": [{"type": "image_url"}]}]}, 400, "expected text"),
        (
            {"model": "a", "prompt": "x " * 44},
            400,
            "20 slots + 44 prompt tokens + 1 new tokens = 65, expected at most 64",
        ),
        ({"model": "a", "prompt": ["x", [1] * 45]}, 400, "45 prompt tokens"),
        ({"model": "a+b", "prompt": [1] * 36}, 400, "29 slots + 36 prompt tokens + 1 new tokens = 66"),
        ({"model": "a", "prompt": [1], "max_tokens": 44}, 400, "+ 44 new tokens = 65"),
    ],
)
def test_refused_before_it_gets_there(asked, body, status, message):
    given, reply = asked(body=body)
    assert given == status
    assert message in reply["error"]["message"]
    assert reply["error"]["type"] == "invalid_request_error"


def test_what_just_fits_passes(asked):
    for prompt, more in (("x " * 43, {}), ([1] * 20, {"max_tokens": 24}), ("x " * 99, {"truncate_prompt_tokens": 43})):
        reached(asked(body={"model": "a", "prompt": prompt, **more}))


def test_a_chat_is_counted_by_its_template(asked):
    messages = [{"role": "user", "content": "x " * 44}]
    status, reply = asked("/v1/chat/completions", {"model": "a", "messages": messages})
    assert status == 400
    assert reply["error"]["code"] == "context_length_exceeded"
    fitting = {"model": "a", "messages": messages, "max_completion_tokens": 1}
    fitting["messages"] = [{"role": "user", "content": "x " * 43}]
    assert reached(asked("/v1/chat/completions", fitting))["messages"] == fitting["messages"]


def test_what_cannot_be_counted_is_left_to_vllm(asked):
    assert reached(asked(body={"model": "a", "prompt": {"no": "text"}}))["prompt"] == {"no": "text"}


@pytest.mark.parametrize("raw", [b"{", b"\xff", b"[" * 9999])
def test_no_json_is_left_to_vllm(asked, raw):
    assert asked(body=raw) == (200, raw)


def test_a_body_too_large_is_refused(asked):
    status, reply = asked(body=b" " * (MAX_BODY_BYTES + 1))
    assert status == 413
    assert str(MAX_BODY_BYTES).encode() in reply


@pytest.mark.parametrize(("is_let_in", "num_read"), [(True, 3), (False, 2)])
def test_of_those_without_a_key_no_more_than_a_little_is_read(is_let_in, num_read):
    piece = {"type": "http.request", "body": b" " * (FREE_BODY_BYTES - 9), "more_body": True}
    pieces = [{**piece, "more_body": False}, piece, piece]  # the last one comes first

    async def receive():
        return pieces.pop()

    async def lets_in():
        return is_let_in

    with nullcontext() if is_let_in else pytest.raises(ApiError, match="not let in"):
        assert asyncio.run(_read(receive, lets_in)) == b" " * 3 * (FREE_BODY_BYTES - 9)
    assert 3 - len(pieces) == num_read


def test_the_models_are_listed_with_the_cartridges(asked):
    listed = reached(asked("/v1/models", method="GET", body=b""))["data"]
    assert [(one["id"], one["owned_by"], one["parent"]) for one in listed] == [
        ("base", "vllm", None),
        ("a", "vllm", "base"),
        ("b", "vllm", "base"),
    ]


def test_nothing_is_told_to_those_without_a_key(asked):
    assert asked("/v1/models", method="GET", body=b"", headers={})[0] == 401
    assert asked(body={"model": "c"}, headers={}) == (401, {"error": "Unauthorized"})
    assert asked(body={"model": "a"}, headers={})[0] == 401
