"""Clients of servers, each asked for what the engine of this process gives."""

import asyncio
import base64
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cartridges.clients.base import ChatRequest
from cartridges.clients.local import LocalClient
from cartridges.clients.openai import OpenaiDialect
from cartridges.clients.pool import Pool, PoolConfig
from cartridges.clients.remote import RemoteClient, chat_format_of, connect
from cartridges.clients.rows import Malformed, id_of, top_k_rows
from cartridges.clients.sglang import SglangDialect
from cartridges.clients.tokasaurus import WITH_CARTRIDGES, TokasaurusDialect, unpacked
from cartridges.clients.vllm import VllmDialect
from cartridges.engine.engine import Engine
from cartridges.errors import InputError
from tests.architectures import tiny
from tests.clients.replica import WAYS, Replica

DIALECTS = {
    "vllm": VllmDialect(),
    "openai": OpenaiDialect(),
    "sglang": SglangDialect(),
    "tokasaurus": TokasaurusDialect(WITH_CARTRIDGES),
}
SYSTEM = {"role": "system", "content": "The room of Kadi Bofu is B-417."}
K = 5
QUICK = {"wait_s": 0.01, "reply_s": 60.0, "max_attempts": 3}


@pytest.fixture(scope="module")
def engine(tiny_tokenizer):
    return Engine(tiny("qwen3", tiny_tokenizer))


@pytest.fixture(scope="module")
def replica(engine):
    with Replica(engine) as served:
        yield served


def client_of(engine, urls, dialect="vllm", **config):
    pool = Pool(urls, PoolConfig.resolve(values={**QUICK, **config}))
    made = DIALECTS[dialect] if isinstance(dialect, str) else dialect
    return RemoteClient(pool, made, engine.model.chat, "tiny", "served")


def requests_of(engine, num=4, **options):
    shared = len(engine.model.chat.system_prefix(SYSTEM["content"]))
    found = []
    for place in range(num):
        messages = [SYSTEM, {"role": "user", "content": f"What is {'in ' * place}the room?"}]
        ids = engine.model.chat.prompt(messages)
        options = {"max_new_tokens": 6 + place, "top_k_logprobs": K, "shared_len": shared, **options}
        found.append(ChatRequest(messages, ids, seed=place, **options))
    return found


def check_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a.text, a.token_ids, a.finish_reason) == (b.text, b.token_ids, b.finish_reason)
        assert a.num_prompt_tokens == b.num_prompt_tokens
        for mine, theirs in ((a.logprobs, b.logprobs), (a.prompt_logprobs, b.prompt_logprobs)):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                assert np.array_equal(mine.ids, theirs.ids)
                np.testing.assert_allclose(mine.logprobs, theirs.logprobs, atol=1e-4)


def replies(client, requests, on_done=None):
    return asyncio.run(client.chat(requests, on_done))


@pytest.mark.parametrize("dialect", list(DIALECTS))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_server_gives_what_the_engine_gives(engine, replica, dialect, temperature):
    requests = requests_of(engine, temperature=temperature)
    done = []
    found = replies(client_of(engine, [replica.url], dialect), requests, done.append)
    check_same(found, replies(LocalClient(engine), requests))
    assert done == [1] * 4


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_logprobs_of_the_prompt(engine, replica, dialect):
    start = len(requests_of(engine, 1)[0].prompt_ids) - 7
    requests = requests_of(engine, prompt_logprobs_from=start)
    check_same(replies(client_of(engine, [replica.url], dialect), requests), replies(LocalClient(engine), requests))


@pytest.mark.parametrize("dialect", ["vllm", "sglang", "tokasaurus"])
def test_messages_alone_are_written_here(engine, replica, dialect):
    (request,) = requests_of(engine, 1)
    alone = ChatRequest(request.messages, max_new_tokens=6, top_k_logprobs=K)
    check_same(replies(client_of(engine, [replica.url], dialect), [alone]), replies(LocalClient(engine), [alone]))


def test_a_client_can_be_used_in_one_loop_after_another(engine, replica):
    client, requests = client_of(engine, [replica.url]), requests_of(engine, 2)
    first = replies(client, requests)
    check_same(replies(client, requests), first)
    assert client.pool.replicas[0].num_requests == 4
    assert replies(client, []) == []


def test_what_a_server_is_told(engine):
    with Replica(engine) as served:
        for dialect in DIALECTS:
            replies(client_of(engine, [served.url], dialect), requests_of(engine, 1))
    told = dict(served.bodies)
    ids = list(requests_of(engine, 1)[0].prompt_ids)
    stop_ids = sorted(engine.model.chat.stop_ids)
    assert told["/v1/completions"] == {
        "model": "served",
        "prompt": ids,
        "max_tokens": 6,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 0,
        "logprobs": K,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "stop_token_ids": stop_ids,
    }
    assert told["/generate"] == {
        "input_ids": ids,
        "sampling_params": {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 6, "stop_token_ids": stop_ids},
        "stream": False,
        "return_logprob": True,
        "top_logprobs_num": K,
        "logprob_start_len": -1,
    }
    assert told["/custom/cartridge/completions"]["logprobs_in_fingerprint"] is True
    assert told["/v1/chat/completions"]["messages"] == requests_of(engine, 1)[0].messages


def test_our_server_knows_what_ends_a_reply(engine):
    assert "stop_token_ids" not in VllmDialect("cartridges").body(requests_of(engine, 1)[0], "m", engine.model.chat)


def test_a_server_without_token_ids_writes_questions_and_is_no_teacher(engine, replica):
    client = client_of(engine, [replica.url], OpenaiDialect(asks_ids=False))
    (reply,) = replies(client, requests_of(engine, 1, top_k_logprobs=0))
    assert reply.text == replies(LocalClient(engine), requests_of(engine, 1))[0].text
    assert (reply.token_ids, reply.logprobs) == ([], None)
    with pytest.raises(InputError, match="gives no logprobs by token id in the dialect openai, so it cannot be a tea"):
        replies(client, requests_of(engine, 1))


def test_a_server_that_writes_chats_otherwise_is_noticed(engine, replica):
    (request,) = requests_of(engine, 1)
    other = ChatRequest(request.messages, [*request.prompt_ids, 9], max_new_tokens=3)
    with pytest.raises(InputError, match=r"that are not the .* of the tokenizer here; use --dialect vllm"):
        replies(client_of(engine, [replica.url], "openai"), [other])


def test_what_a_dialect_cannot_do_is_told_before_anything_is_sent(engine, replica):
    ids = requests_of(engine, 1)[0].prompt_ids
    with pytest.raises(InputError, match="a prompt as token ids alone, expected messages"):
        replies(client_of(engine, [replica.url], "openai"), [ChatRequest(prompt_ids=ids)])
    for dialect in ("openai", "tokasaurus"):
        with pytest.raises(InputError, match="no logprobs of the prompt; set question_logprobs=false"):
            replies(client_of(engine, [replica.url], dialect), requests_of(engine, 1, prompt_logprobs_from=3))
    with pytest.raises(InputError, match=r"given temperature=0.5 with logprobs; SGLang tells them after temperature"):
        replies(client_of(engine, [replica.url], "sglang"), requests_of(engine, 1, temperature=0.5))


@pytest.mark.parametrize(
    ("dialect", "answer", "message"),
    [
        ("vllm", {"choices": []}, "ValueError"),
        ("vllm", [], "TypeError"),
        ("vllm", {"choices": [{"finish_reason": "stop", "text": "x"}]}, "a reply without token_ids"),
        ("vllm", "<html>", "what is no JSON"),
        ("sglang", {"text": "x"}, "KeyError 'meta_info'"),
        ("sglang", {"output_ids": [1], "meta_info": {"finish_reason": {"type": "x"}}}, "ended by 'x'"),
        ("vllm", {"choices": [{"finish_reason": "stop", "token_ids": [-1]}]}, "OverflowError|out of range"),
        ("vllm", "[" * 99999, "what is no JSON"),
        ("tokasaurus", {"choices": [{"finish_reason": "stop"}], "system_fingerprint": None}, "TypeError"),
        ("openai", {"choices": [{"finish_reason": "stop"}]}, "KeyError 'message'"),
    ],
)
def test_an_answer_of_another_kind_is_one_line(engine, dialect, answer, message):
    with Replica(engine, [answer]) as served, pytest.raises(InputError, match=message) as caught:
        replies(client_of(engine, [served.url], dialect), requests_of(engine, 1))
    assert served.url in str(caught.value)


def test_a_row_too_few_is_noticed(engine):
    answer = {
        "choices": [{"finish_reason": "stop", "token_ids": [1, 2], "logprobs": {"top_logprobs": [{"token_id:1": 0.0}]}}]
    }
    with Replica(engine, [answer]) as served, pytest.raises(InputError, match="1 rows of logprobs for 2 tokens"):
        replies(client_of(engine, [served.url]), requests_of(engine, 1))


def test_a_reply_that_was_given_up_is_asked_for_again(engine):
    gone = {"output_ids": [], "meta_info": {"finish_reason": {"type": "abort", "message": "stopped"}}}
    requests = requests_of(engine, 1)
    with Replica(engine, [gone, gone]) as served:
        client = client_of(engine, [served.url], "sglang")
        check_same(replies(client, requests), replies(LocalClient(engine), requests))
        assert (len(served.bodies), client.pool.replicas[0].num_retries) == (3, 2)
    with Replica(engine, [gone] * 9) as served, pytest.raises(InputError, match="gives up every reply; see its log"):
        replies(client_of(engine, [served.url], "sglang"), requests)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=6,
)


def places_in(content, trail=()):
    """Where every part of a JSON value is."""
    yield trail
    parts = enumerate(content) if isinstance(content, list) else content.items() if isinstance(content, dict) else ()
    for key, part in parts:
        yield from places_in(part, (*trail, key))


@pytest.fixture(scope="module")
def answers(engine):
    """A sound answer in each dialect, with where its parts are."""
    (request,) = requests_of(engine, 1)
    found = {}
    for name, dialect in DIALECTS.items():
        answer = json.loads(json.dumps(WAYS[dialect.path](engine, dialect.body(request, "m", engine.model.chat))))
        found[name] = answer, list(places_in(answer))
    return found


@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_no_answer_brings_the_client_down(engine, answers, dialect):
    """Any part of a sound answer replaced by anything: a reply with what was asked for, or one line."""
    (request,) = requests_of(engine, 1)
    client = client_of(engine, ["http://a"], dialect)
    answer, places = answers[dialect]

    @given(st.sampled_from(places), VALUES)
    @settings(max_examples=150, deadline=None, database=None)
    def check(place, value):
        spoilt = json.loads(json.dumps({"": answer}))
        *trail, last = ("", *place)
        inner = spoilt
        for key in trail:
            inner = inner[key]
        inner[last] = value
        try:
            result = client._read(spoilt[""], client.pool.replicas[0], request)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert result.logprobs is None or len(result.logprobs) == len(result.token_ids)

    check()


def test_rows_are_sorted_cut_and_checked():
    rows = top_k_rows([[(5, -2.0), (3, -0.5), (9, -3.0)], [(1, -1.0), (2, -1.0)]], 2)
    assert rows.ids.tolist() == [[3, 5], [1, 2]] and rows.logprobs.tolist() == [[-0.5, -2.0], [-1.0, -1.0]]
    assert top_k_rows([], 4).ids.shape == (0, 4)
    assert id_of("token_id:17") == 17
    for bad in ("17", "token_id:", "token_id:-3", " cat"):
        with pytest.raises(Malformed):
            id_of(bad)
    with pytest.raises(Malformed, match="no numbers, or token ids below 0"):
        top_k_rows([[(1, float("nan"))]], 1)
    with pytest.raises(Malformed):
        top_k_rows([[(2**40, -1.0)]], 1)


def test_arrays_are_never_larger_or_smaller_than_told():
    text = base64.b64encode(np.arange(6, dtype=np.int32).tobytes()).decode()
    assert unpacked(text, "<i4", (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(Malformed, match="an array of 24 bytes for 2 tokens and 4 entries"):
        unpacked(text, "<i4", (2, 4))
    with pytest.raises(ValueError, match=r"."):
        unpacked("not base64!", "<i4", (2, 3))


def test_connect_asks_the_server_what_it_serves(engine, tmp_path):
    engine.model.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 777}))
    with Replica(engine, owner="cartridges", key="secret") as served:
        client = connect([served.url + "/v1/"], "vllm", str(tmp_path), api_key="secret")
        assert (client.served_name, client.window, client.identity) == ("served", 900, None)
        assert client.model_id == str(tmp_path.resolve())
        assert isinstance(client.dialect, VllmDialect) and client.dialect.owner == "cartridges"
        check_same(replies(client, requests_of(engine, 1)), replies(LocalClient(engine), requests_of(engine, 1)))
        with pytest.raises(InputError, match=r"wants another key \(wrong key\); give one with --api-key-file"):
            connect([served.url], "vllm", str(tmp_path))
    with Replica(engine, tells_models=False) as served:
        client = connect([served.url], "sglang", str(tmp_path))
        assert (client.served_name, client.window) == (str(tmp_path.resolve()), 777)
    with pytest.raises(InputError, match=r"no server answers .*ConnectError"):
        connect([served.url], "vllm", str(tmp_path))


def test_wrong_input_is_told(tmp_path):
    with pytest.raises(InputError, match="unknown dialect 'vlm'; did you mean 'vllm'"):
        connect(["http://127.0.0.1:1"], "vlm")
    with pytest.raises(InputError, match="given the URL 'localhost:80', expected one such as http://127"):
        connect(["localhost:80"])
    with pytest.raises(InputError, match="given no URL of a server"):
        Pool([])
    with pytest.raises(InputError, match="no tokenizer at"):
        connect(["http://127.0.0.1:1"], model=str(tmp_path))


def test_the_format_of_pocket_needs_no_weights():
    chat, name = chat_format_of("pocket")
    assert name == "pocket" and chat.prompt([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("dialect", ["vllm", "openai", "sglang"])
def test_a_server_draws_by_top_p_as_the_engine_does(engine, replica, dialect):
    k = 0 if dialect == "openai" else K
    requests = requests_of(engine, 2, temperature=1.0, top_p=0.4, top_k_logprobs=k)
    mine = replies(LocalClient(engine), requests)
    assert [one.text for one in replies(client_of(engine, [replica.url], dialect), requests)] == [r.text for r in mine]
    without = replies(LocalClient(engine), [replace(request, top_p=1.0) for request in requests])
    assert [one.text for one in without] != [one.text for one in mine]


def test_top_p_is_told_where_it_limits_and_refused_where_no_server_knows_it(engine):
    request = ChatRequest([{"role": "user", "content": "Who?"}], temperature=1.0, top_p=0.5)
    told, chat = DIALECTS, engine.model.chat
    assert told["openai"].body(request, "served", chat)["top_p"] == 0.5
    assert told["vllm"].body(request, "served", chat)["top_p"] == 0.5
    assert told["sglang"].body(request, "served", chat)["sampling_params"]["top_p"] == 0.5
    with pytest.raises(InputError, match=r"top_p=0\.5, which Tokasaurus does not know; set question.top_p=1"):
        told["tokasaurus"].body(request, "served", chat)
    assert "top_p" not in told["openai"].body(replace(request, top_p=1.0), "served", chat)
