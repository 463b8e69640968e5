"""Logprobs and draws: what is told of the distributions is what the engine has, in every form that is asked for."""

import base64
import json

import numpy as np
import pytest

from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from tests.serving.place import events_of

BEDS = [{"role": "user", "content": "How many beds?"}]


def test_a_streamed_text_tells_where_its_tokens_stand(server):
    body = {"model": "ward", "prompt": "The ward", "max_tokens": 10, "temperature": 0, "logprobs": 1}
    whole = server.post("/v1/completions", body).json()["choices"][0]
    events = events_of(server.post("/v1/completions", {**body, "stream": True}))
    assert "".join(event["choices"][0]["text"] for event in events) == whole["text"]
    parts = [event["choices"][0]["logprobs"] for event in events if event["choices"][0]["logprobs"]]
    for key in ("tokens", "text_offset"):
        assert [entry for part in parts for entry in part[key]] == whole["logprobs"][key]
    told = [logprob for part in parts for logprob in part["token_logprobs"]]
    assert told == pytest.approx(whole["logprobs"]["token_logprobs"], abs=1e-4)
    tops = [list(top) for part in parts for top in part["top_logprobs"]]
    assert tops == [list(top) for top in whole["logprobs"]["top_logprobs"]]
    assert whole["logprobs"]["text_offset"][0] == 0 and whole["logprobs"]["text_offset"][-1] > 0


def test_logprobs_are_the_engines(server, judge, served_model):
    expected = judge(top_k_logprobs=3)
    choice = server.chat(temperature=0, logprobs=True, top_logprobs=3).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == len(expected.token_ids)
    for place, (entry, token) in enumerate(zip(content, expected.token_ids, strict=True)):
        assert entry["logprob"] == pytest.approx(expected.chosen_logprobs[place], abs=1e-4)
        assert entry["logprob"] == pytest.approx(entry["top_logprobs"][0]["logprob"], abs=1e-6), "greedy"
        told = [top["logprob"] for top in entry["top_logprobs"]]
        assert told == pytest.approx(expected.logprobs.logprobs[place].tolist(), abs=1e-4)
        assert bytes(entry["bytes"]).decode("utf-8", "replace") == entry["token"]
        assert entry["token"] == served_model.chat.decode([token], with_special=True)
    text = b"".join(bytes(entry["bytes"]) for entry in content).decode("utf-8", "replace")
    assert text == choice["message"]["content"]


def test_a_seed_gives_the_same_reply_and_n_gives_different_ones(server):
    def texts(**fields):
        return [choice["message"]["content"] for choice in server.chat(temperature=1, n=4, **fields).json()["choices"]]

    assert texts(seed=5) == texts(seed=5)
    assert len(set(texts(seed=5))) > 1
    assert texts(seed=5) != texts(seed=99)
    assert texts() != texts(), "without a seed each request draws anew"
    assert texts(seed=5, top_k=1) == texts(seed=7, top_p=1e-9), "only the likeliest is left"


def array(text: str, dtype, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype).reshape(shape)


def test_a_chat_with_top_logprobs_in_the_fingerprint(server, served_model, cartridges):
    ids = tuple(served_model.chat.prompt(BEDS))
    request = Request(ids, 8, top_k_logprobs=5, cartridge=cartridges["ward"])
    (expected,) = Engine(served_model).generate([request])
    body = {"model": "default", "messages": BEDS, "max_completion_tokens": 8, "cartridges": [{"id": "ward"}]}
    body |= {"logprobs": True, "top_logprobs": 5, "logprobs_in_fingerprint": True}
    reply = server.post(
        "/custom/cartridge/chat/completions", {**body, "apply_chat_template_overrides": {"enable_thinking": False}}
    ).json()
    assert reply["choices"][0]["message"]["content"] == expected.text, "greedy where no temperature is given"
    assert reply["choices"][0]["logprobs"] is None
    told = json.loads(reply["system_fingerprint"])
    assert told["completion_ids"] == [expected.token_ids]
    num_new = len(expected.token_ids)
    assert array(told["packed_topk_indices"][0], np.int32, num_new, 5).tolist() == expected.logprobs.ids.tolist()
    logprobs = array(told["packed_topk_logprobs"][0], np.float32, num_new, 5)
    np.testing.assert_allclose(logprobs, expected.logprobs.logprobs, atol=1e-4)
    chosen = array(told["packed_chosen_logprobs"][0], np.float32, num_new)
    np.testing.assert_allclose(chosen, expected.chosen_logprobs, atol=1e-4)


def test_a_completion_tells_the_logprob_of_what_was_drawn_too(server):
    body = {"model": "ward", "prompt": "The ward", "temperature": 2.0, "seed": 3, "logprobs": 1}
    told = server.client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert len(told["tokens"]) == 16  # where no number is named
    for token, logprob, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert top[token] == pytest.approx(logprob, abs=1e-4) and len(top) <= 2
    assert max(len(top) for top in told["top_logprobs"]) == 2
