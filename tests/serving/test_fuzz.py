"""Requests that nobody would write: no 5xx, no hang, nothing left behind.

The suite sends some hundred; `CARTRIDGES_FUZZ=10000` sends so many.
"""

import json
import os
import random
import socket
import threading
from contextlib import suppress

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.place import running

NUM_REQUESTS = int(os.environ.get("CARTRIDGES_FUZZ", "240"))
SHARE_OF_SCHEMA = 0.5
ROUTES = [
    f"{prefix}{kind}" for prefix in ("/v1", "/custom/cartridge") for kind in ("/chat/completions", "/completions")
]
LIMITS = {"default_max_tokens": 4, "max_choices": 4, "max_body_bytes": 20_000, "reply_s": 20}
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
COMMON = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}


@pytest.fixture(scope="module")
def fuzzed(served_model, cartridges):
    """A server whose replies are short and whose limits are near."""
    with running(served_model, cartridges, **LIMITS) as server:
        server.client.timeout = httpx.Timeout(60)
        yield server
        server.settle()
        assert server.chat().status_code == 200


def is_well_answered(response: httpx.Response) -> None:
    assert response.status_code < 500, (response.status_code, response.text)
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def operations(server):
    """The operations of the schema that the server tells of itself."""
    schema = server.client.get("/openapi.json").json()
    return [found.ok() for found in schemathesis.openapi.from_dict(schema).get_all_operations()]


def test_requests_made_from_the_schema(fuzzed):
    found = operations(fuzzed)
    posts = [operation for operation in found if operation.method == "post"]
    assert len(found) >= 9 and len(posts) == 5
    for operation in found:
        share = SHARE_OF_SCHEMA * (0.9 / len(posts) if operation in posts else 0.1 / (len(found) - len(posts)))

        @settings(max_examples=max(2, int(NUM_REQUESTS * share)), **COMMON)
        @given(case=operation.as_strategy())
        def ask(case):
            if isinstance(case.body, dict) and case.body.get("max_tokens"):
                case.body["max_tokens"] = min(case.body["max_tokens"], 4)
            if isinstance(case.body, dict) and case.body.get("max_completion_tokens"):
                case.body["max_completion_tokens"] = min(case.body["max_completion_tokens"], 4)
            arguments = case.as_transport_kwargs(base_url=fuzzed.url)
            arguments = {key: value for key, value in arguments.items() if key in ("method", "url", "json", "params")}
            is_well_answered(httpx_request(fuzzed, arguments))

        ask()


def httpx_request(server, arguments) -> httpx.Response:
    try:
        return server.client.request(**arguments)
    except (httpx.InvalidURL, UnicodeEncodeError):  # what this client cannot even write
        return httpx.Response(400, json={"error": {"message": "", "type": "", "param": None, "code": None}})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["ward", "firm", "ward+firm", "tiny-qwen3", "nobody", "", "+", "ward+", "../x", "ward+ward"])
texts = st.text(max_size=60)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "developer", "tool"]), "content": texts | json_values}
    ),
    max_size=4,
)
likely = {
    "model": names,
    "messages": messages,
    "prompt": texts | st.lists(st.integers(-2, 5000), max_size=20) | st.lists(texts, max_size=5),
    "cartridges": st.lists(names | st.fixed_dictionaries({"id": names}), max_size=3),
    "max_tokens": st.integers(-1, 6),
    "n": st.integers(-1, 5),
    "temperature": st.floats(0, 2) | st.floats(),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(-2, 10_000),
    "seed": st.integers(),
    "stop": texts | st.lists(texts, max_size=5),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "logprobs": st.booleans() | st.integers(-1, 25),
    "top_logprobs": st.integers(-1, 25),
    "ignore_eos": st.booleans(),
    "return_token_ids": st.booleans(),
    "tools": json_values,
    "logit_bias": json_values,
}
likely_bodies = st.fixed_dictionaries(
    {"model": names}, optional={key: value for key, value in likely.items() if key != "model"}
)
broken_bodies = st.fixed_dictionaries(
    {}, optional={key: value | json_values for key, value in [("model", names), *likely.items()]}
)


@settings(max_examples=max(20, int(NUM_REQUESTS * (1 - SHARE_OF_SCHEMA))), **COMMON)
@given(
    route=st.sampled_from(ROUTES),
    body=likely_bodies | broken_bodies | json_values,
    raw=st.none() | st.none() | st.none() | st.binary(max_size=200),
)
def test_requests_made_at_random(fuzzed, route, body, raw):
    content = raw if raw is not None else json.dumps(body).encode()
    response = fuzzed.client.post(route, content=content, headers={"Content-Type": "application/json"})
    if response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")
        assert '"error":{' not in response.text
        return
    is_well_answered(response)
    if response.status_code == 200:
        assert response.json()["choices"]


def test_clients_that_leave_at_any_moment(fuzzed):
    rng = random.Random(0)
    body = {"model": "ward", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 40, "ignore_eos": True}
    raws = [json.dumps({**body, "stream": stream}).encode() for stream in (True, False)]
    requests = [HEAD.format(len(raw)).encode() + raw for raw in raws]

    def leave(plan):
        for request, num_bytes, patience_s in plan:
            with socket.create_connection(("127.0.0.1", fuzzed.port), timeout=30) as connection:
                connection.sendall(request[:num_bytes])
                connection.settimeout(patience_s)
                with suppress(TimeoutError):
                    connection.recv(100)

    def plan():
        return rng.choice(requests), rng.choice([20, 150, 100_000]), rng.choice([0.001, 0.01, 0.05])

    plans = [[plan() for _ in range(max(2, NUM_REQUESTS // 100))] for _ in range(8)]
    threads = [threading.Thread(target=leave, args=(given,)) for given in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    fuzzed.settle(60)
