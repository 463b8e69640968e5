"""Bounds: of the queue, of a request's size and time, of a slow reader's patience; and keys."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cartridges import compose as composing
from cartridges.errors import ConfigError, InputError
from cartridges.serving import openai_routes
from cartridges.serving.settings import Keys, ServeConfig, read_keys
from tests.serving.place import ADMIN_KEY, API_KEY, error_of, raw_request, running

LONG = {"max_tokens": 900, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def small(served_model, cartridges):
    """A server with narrow limits."""
    limits = {"max_replies": 8, "max_body_bytes": 2000, "read_s": 0.5, "retry_after_s": 7}
    with running(served_model, cartridges, **limits) as server:
        yield server


def wait_until(is_so, wait_s=20.0):
    by = time.monotonic() + wait_s
    while not is_so():
        assert time.monotonic() < by, "it never came to that"
        time.sleep(0.005)


def test_more_than_the_queue_holds_is_refused_until_there_is_room(small):
    with small.client.stream("POST", "/v1/chat/completions", json=chat_body(small, n=8, stream=True, **LONG)) as busy:
        pieces = busy.iter_raw()
        next(pieces)
        response = small.chat()
        error = error_of(response, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert response.headers["retry-after"] == "7"
        assert small.client.get("/health").status_code == 200
    small.settle()
    assert small.chat().status_code == 200
    assert error_of(small.chat(n=9), 429), "more than the queue ever holds"
    assert "cartridges_refused_total 2.0" in small.client.get("/metrics").text


def test_a_pair_is_composed_once_however_many_ask_and_never_for_those_who_find_no_room(
    served_model, cartridges, monkeypatch
):
    compose, calls, replies = composing.compose, [], []

    def slow(parts, model):
        calls.append(parts)
        time.sleep(0.3)
        return compose(parts, model)

    monkeypatch.setattr(composing, "compose", slow)
    with running(served_model, cartridges, max_replies=8) as server:
        asking = [threading.Thread(target=lambda: replies.append(server.chat(model="ward+firm"))) for _ in range(8)]
        with server.client.stream("POST", "/v1/chat/completions", json=chat_body(server, n=8, stream=True, **LONG)):
            assert error_of(server.chat(model="ward+firm"), 429)["code"] == "queue_full"
            assert calls == []
        server.settle()
        num_before = threading.active_count()
        for thread in asking:
            thread.start()
        wait_until(lambda: calls)
        time.sleep(0.1)  # all of them are there, and wait without a thread of the server's
        assert threading.active_count() <= num_before + len(asking) + 2
        assert error_of(server.chat(), 429)["code"] == "queue_full", "those who wait for it count"
        for thread in asking:
            thread.join(60)
        assert len(calls) == 1 and [reply.status_code for reply in replies] == [200] * 8
        server.settle()


def test_prompts_that_are_too_many_are_refused_unread_and_those_that_are_read_count(small, monkeypatch):
    read, goes_on = [], threading.Event()

    def slow(desk, asked):
        read.append(small.desk.num_open)
        assert goes_on.wait(30)
        return [[5]] * asked.num_prompts

    monkeypatch.setattr(openai_routes, "text_prompts", slow)
    body = {"model": small.desk.base, "max_tokens": 1}
    error = error_of(small.post("/v1/completions", {**body, "prompt": ["a"] * 400}))
    assert error["message"] == "given 400 prompts with n=1, expected at most 32 replies"
    assert error_of(small.post("/v1/completions", {**body, "prompt": ["a"] * 9}), 429)["code"] == "queue_full"
    assert read == []
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(small.post, "/v1/completions", {**body, "prompt": ["a"] * 8})
        wait_until(lambda: read)
        assert read == [8] and error_of(small.chat(), 429)["code"] == "queue_full"
        goes_on.set()
        assert asking.result().status_code == 200
    small.settle()


def chat_body(server, **fields):
    return {"model": server.desk.base, "messages": [{"role": "user", "content": "How many beds?"}], **fields}


def test_a_body_that_is_too_large_is_refused(small):
    assert error_of(small.chat("x" * 3000), 413)["code"] == "request_too_large"
    head = "POST /v1/chat/completions HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n"
    with raw_request(
        small.port, head, b"7d0\r\n" + b"x" * 2000 + b"\r\n10\r\n" + b"y" * 16 + b"\r\n0\r\n\r\n"
    ) as chunked:
        assert chunked.recv(100).startswith(b"HTTP/1.1 413")
    head = "POST /v1/chat/completions HTTP/1.1\nHost: x\nContent-Length: 99999999999\n"
    with raw_request(small.port, head, b"x" * 40_000) as endless:
        assert endless.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_never_comes_is_given_up(small):
    head = "POST /v1/chat/completions HTTP/1.1\nHost: x\nContent-Length: 100\nContent-Type: application/json\n"
    began = time.monotonic()
    with raw_request(small.port, head, b'{"model"') as slow:
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
    assert 0.4 < time.monotonic() - began < 10


def test_a_reply_that_takes_too_long_is_given_up(served_model):
    with running(served_model, reply_s=0.2) as server:
        error = error_of(server.chat(**LONG), 504)
        assert (error["code"], error["type"]) == ("timeout", "timeout_error")
        events = server.chat(stream=True, **LONG).text.split("\n\n")
        assert events[-2] == "data: [DONE]"
        assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == "timeout"
        server.settle()


def test_a_client_that_leaves_frees_its_place(server):
    head = "POST /v1/chat/completions HTTP/1.1\nHost: x\nContent-Type: application/json\nContent-Length: {}\n"
    for stream in (True, False):
        body = json.dumps(chat_body(server, stream=stream, **LONG)).encode()
        before = server.engine.stats().num_new_tokens
        connection = raw_request(server.port, head.format(len(body)), body)
        if stream:
            assert connection.recv(10)
        wait_until(lambda: server.engine.stats().num_running == 1)
        connection.close()
        server.settle()
        assert server.engine.stats().num_new_tokens - before < LONG["max_tokens"], "it was ended before its time"


def test_a_slow_reader_blocks_nobody_and_is_given_up(served_model):
    with running(served_model, max_replies=1, write_s=1.0) as server:
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it
        fields = {"logprobs": True, "top_logprobs": 20, **LONG, "max_tokens": 150}
        body = json.dumps(chat_body(server, stream=True, **fields)).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\nHost: x\nContent-Type: application/json\nContent-Length: {len(body)}"
        )
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            slow.connect(("127.0.0.1", server.port))
            slow.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
            assert slow.recv(10)
            wait_until(lambda: server.desk.num_open == 0)
            assert server.chat().status_code == 200, "its place is free, though it has read next to nothing"
            wait_until(lambda: not server.server.server_state.tasks, 30)
            with pytest.raises(ConnectionError):
                while slow.recv(1 << 20):
                    pass
                raise ConnectionError("closed by the server")
        server.settle()


def test_many_at_once_get_what_one_gets(served_model, cartridges):
    with running(served_model, cartridges) as server:
        names = [server.desk.base, "ward", "firm", "ward+firm"]
        expected = {name: server.chat(model=name, temperature=0).json()["choices"] for name in names}
        asked = names * 6
        with ThreadPoolExecutor(len(asked)) as pool:
            replies = list(pool.map(lambda name: server.chat(model=name, temperature=0), asked))
        assert [reply.json().get("choices", reply.text) for reply in replies] == [expected[name] for name in asked]
        server.settle()


def test_who_names_no_length_gets_what_there_is_room_for(served_model, cartridges):
    with running(served_model, cartridges, kv_tokens_total=300) as server:
        asked = {"model": "ward", "max_tokens": "absent", "ignore_eos": True}
        usage = server.chat(**asked, n=2).json()["usage"]
        num_prompt = usage["prompt_tokens"]
        assert usage["completion_tokens"] == 2 * (256 - num_prompt), "the largest row beside 10 slots"
        error = error_of(server.chat(**{**asked, "max_tokens": 257 - num_prompt}))
        assert "needs room for 528 tokens, expected at most 300" in error["message"]
        assert "needs room for" in error_of(server.chat("beds " * 200, **asked))["message"]
        server.settle()


def test_keys_are_asked_for(served_model, cartridges):
    with running(served_model, cartridges, keys=Keys((API_KEY,), (ADMIN_KEY,))) as server:
        assert error_of(server.chat(), 401)["message"].startswith("given no API key")
        for wrong in (API_KEY + "x", API_KEY[:-1], "", "é" * 9):
            headers = {b"Authorization": f"Bearer {wrong}".strip().encode()}
            assert error_of(server.client.get("/v1/models", headers=headers), 401)["code"] == "invalid_api_key"
        for path in ("/metrics", "/v1/models", "/openapi.json", "/nowhere", "//v1/models"):
            error_of(server.client.get(path), 401)
        assert server.client.get("/health").status_code == 200
        for key in (API_KEY, ADMIN_KEY):
            assert server.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        error = error_of(server.client.get("/v1/cartridges", headers={"Authorization": f"bearer {API_KEY}"}), 403)
        assert error["code"] == "admin_key_needed"


def test_keys_are_read_from_a_file_and_a_variable(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# clients\nfirst-key-1\n\n  second-key  \n")
    assert read_keys(path, "third-key-3") == ("first-key-1", "second-key", "third-key-3")
    assert read_keys(None, None) == ()
    path.write_text("short\n")
    with pytest.raises(InputError, match="given a key of 5 characters, expected 8 or more ASCII"):
        read_keys(path, None)
    path.write_text("# none\n")
    with pytest.raises(InputError, match="holds no key"):
        read_keys(path, None)


def test_limits_are_checked():
    with pytest.raises(ConfigError, match="max_replies"):
        ServeConfig.resolve(overrides=["max_replies=0"])
    assert ServeConfig.resolve().host == "127.0.0.1"
