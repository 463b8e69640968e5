"""What cannot be answered is refused with one clear line in the form of the OpenAI API, and the server lives on."""

import json

import pytest

from tests.serving.place import error_of

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("fields", "param", "part"),
    [
        ({"n": 0}, "n", "greater than or equal to 1, given 0"),
        ({"n": 33}, "n", "given n=33, expected at most 32"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 100000}, "max_tokens", "the window of tiny-qwen3"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "valid number, given 'hot'"),
        ({"temperature": "0.5"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"seed": 1.5}, "seed", "valid integer"),
        ({"stop": ""}, "stop", "at least 1 character"),
        ({"stop": "x" * 1_000_000}, "stop", "at most 1024 characters"),
        ({"stop": ["x"] * 17}, "stop", "at most 16 items"),
        ({"stop": ["ok", "y" * 1_000_000]}, "stop.1", "at most 1024 characters"),
        ({"stop": [["a"]]}, "stop.0", "valid string"),
        ({"top_logprobs": 3}, "top_logprobs", "without logprobs=true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "expected at most 20"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "greater than or equal to 0"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "absent"}, "messages", "Field required"),
        ({"messages": "Hello"}, "messages", "valid list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'system', 'developer', 'user'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "Field required"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "valid string"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content", "half of a surrogate pair"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]},
            "messages.0.tool_calls",
            "not permitted",
        ),
        ({"model": "absent"}, "model", "Field required"),
        ({"model": 7}, "model", "valid string"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "without stream=true, expected both"),
        ({"stream": False, "stream_options": {}}, "stream_options", "without stream=true, expected both"),
        ({"cartridges": "ward"}, "cartridges", "valid list"),
        ({"cartridges": ["ward", "ward"]}, "cartridges", "given a cartridge twice"),
        ({"cartridges": ["ward"], "model": "firm"}, "cartridges", "expected the model 'tiny-qwen3' with them"),
        ({"cartridges": ["ward"] * 17}, "cartridges", "given 17 cartridges, expected at most 16"),
        ({"cartridges": [{"id": "ward", "force_redownload": True}]}, "cartridges.0.force_redownload", "False"),
        ({"tools": [{"type": "function"}]}, "tools", "tools is not supported by this server; leave it out"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"presence_penalty": float("nan")}, "presence_penalty", "not supported"),
        ({"logit_bias": {"5": 100}}, "logit_bias", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"temprature": 1}, "temprature", "unknown parameter 'temprature'; did you mean 'temperature'?"),
    ],
)
def test_a_wrong_parameter_is_named(server, fields, param, part):
    body = {"model": server.desk.base, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, **fields}
    raw = json.dumps({key: value for key, value in body.items() if value != "absent"})
    response = server.client.post(CHAT, content=raw, headers={"Content-Type": "application/json"})
    error = error_of(response)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert part in error["message"] and len(error["message"]) < 1000


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_temperature_that_is_no_number_is_refused(server, number):
    raw = f'{{"model": "ward", "messages": [{{"role": "user", "content": "x"}}], "temperature": {number}}}'
    response = server.client.post(CHAT, content=raw, headers={"Content-Type": "application/json"})
    assert error_of(response)["param"] == "temperature"


@pytest.mark.parametrize(
    ("fields", "param", "code", "part"),
    [
        ({"model": "wrd"}, "model", "model_not_found", "unknown model 'wrd'; did you mean 'ward'?"),
        ({"model": "ward+nobody"}, "model", "model_not_found", "unknown model 'nobody'"),
        ({"model": "../../etc"}, "model", "model_not_found", "unknown model '../../etc'"),
        ({"model": ""}, "model", "model_not_found", "unknown model ''"),
        ({"cartridges": ["nobody"]}, "cartridges", "cartridge_not_found", "unknown cartridge 'nobody'"),
        ({"cartridges": [{"id": "/etc/passwd", "source": "local"}]}, "cartridges", "cartridge_not_found", "unknown"),
    ],
)
def test_an_unknown_name_is_not_found(server, fields, param, code, part):
    error = error_of(server.chat(**fields), 404)
    assert (error["param"], error["code"]) == (param, code)
    assert part in error["message"]


def test_a_prompt_longer_than_the_window_is_refused(server):
    error = error_of(server.chat("beds " * 3000, model="ward"))
    assert error["code"] == "context_length_exceeded"
    assert "behind 10 slots" in error["message"] and "expected at most 1024" in error["message"]
    ids = {"model": "ward", "prompt": [5] * 1000, "max_tokens": 14}
    assert server.post("/v1/completions", ids).status_code == 200
    assert error_of(server.post("/v1/completions", {**ids, "max_tokens": 15}))["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("prompt", "part"),
    [
        ("", "given an empty prompt"),
        ([], "given no prompt"),
        ([[]], "given an empty prompt"),
        (["", "x"], "given an empty prompt"),
        ("a\udfff", "half of a surrogate pair"),
        (["a", "\ud800"], "half of a surrogate pair"),
        ([1, "x"], "prompt"),
        ([-1], "prompt"),
        ([10**6], "the token id 1000000"),
        ([[5]] * 33, "given 33 prompts with n=1, expected at most 32 replies"),
        ({"text": "x"}, "prompt"),
        (None, "prompt"),
    ],
)
def test_a_wrong_prompt_is_told(server, prompt, part):
    raw = json.dumps({"model": "ward", "prompt": prompt})
    response = server.client.post("/v1/completions", content=raw, headers={"Content-Type": "application/json"})
    assert part in error_of(response)["message"]


@pytest.mark.parametrize("field", [{"echo": True}, {"suffix": "x"}, {"best_of": 2}, {"logprobs": True}])
def test_what_completions_do_not_offer_is_refused(server, field):
    error = error_of(server.post("/v1/completions", {"model": "ward", "prompt": "x", **field}))
    assert error["param"] == next(iter(field))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"model": 1e99999}',
        b"[" * 100_000,
        b"9" * 10_000,
        b'{"a":' * 50_000,
    ],
)
def test_a_body_that_is_no_request_is_refused(server, raw):
    assert error_of(server.client.post(CHAT, content=raw, headers={"Content-Type": "application/json"}))["message"]


def test_other_kinds_of_content_are_refused(server):
    raw = json.dumps({"model": "ward", "messages": [{"role": "user", "content": "x"}]})
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        error = error_of(server.client.post(CHAT, content=raw, headers={"Content-Type": kind}))
        assert "Content-Type: application/json" in error["message"], "a page in a browser may send this unasked"


def test_what_is_not_there_is_told_in_the_same_form(server):
    assert "there is nothing at /v2/chat" in error_of(server.client.get("/v2/chat"), 404)["message"]
    assert "GET is not offered here" in error_of(server.client.get(CHAT), 405)["message"]
    assert "PATCH is not offered here" in error_of(server.client.patch("/v1/models"), 405)["message"]
    error_of(server.client.get("/v1/chat/completions/"), 404)
    error_of(server.client.get("/docs"), 404)
