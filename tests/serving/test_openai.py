"""The routes of the OpenAI API: what comes back is what the engine says."""

import threading

from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from tests.serving.place import error_of, events_of

BEDS = [{"role": "user", "content": "How many beds?"}]


def test_the_models_are_the_base_and_each_cartridge(server, cartridges):
    models = {model["id"]: model for model in server.client.get("/v1/models").json()["data"]}
    assert set(models) == {"tiny-qwen3", "ward", "firm"}
    ward = cartridges["ward"]
    assert (models["ward"]["num_slots"], models["ward"]["digest"]) == (10, ward.digest)
    assert models["ward"]["num_bytes"] == ward.num_bytes
    assert (models["ward"]["parent"], models["tiny-qwen3"]["parent"]) == ("tiny-qwen3", None)
    assert models["ward"]["max_model_len"] == 1014 and models["tiny-qwen3"]["max_model_len"] == 1024
    assert server.client.get("/v1/models/ward").json() == models["ward"]
    both = server.client.get("/v1/models/ward+firm").json()
    num_slots = server.engine.shelf.get(["ward", "firm"]).num_slots
    assert (both["id"], both["num_slots"], both["max_model_len"]) == ("ward+firm", num_slots, 1024 - num_slots)
    for name, status, message in [
        ("ward+nobody", 404, "unknown model 'nobody'; "),
        ("ward+", 404, "unknown model ''; "),
        ("nobody", 404, "unknown model 'nobody'; "),
        ("ward+ward", 400, "given a cartridge twice, expected different ones"),
    ]:  # what is said to those who ask them, too
        assert error_of(server.client.get(f"/v1/models/{name}"), status)["message"].startswith(message)
        assert error_of(server.chat(model=name), status)["message"].startswith(message)


def test_a_chat_is_answered_as_the_engine_does(server, cartridges, judge):
    for name, cartridge in {"tiny-qwen3": None, **cartridges}.items():
        reply = server.chat(model=name, temperature=0).json()
        (choice,), expected = reply["choices"], judge(cartridge)
        assert choice["message"] == {"role": "assistant", "content": expected.text}
        assert (choice["finish_reason"], reply["model"]) == (expected.finish_reason, name)
        assert reply["usage"]["prompt_tokens"] == expected.num_prompt_tokens
        assert reply["usage"]["completion_tokens"] == len(expected.token_ids)
        assert reply["usage"]["prompt_tokens_details"]["cartridge_slots"] == (cartridge.num_slots if cartridge else 0)
    assert len({judge(cartridge).text for cartridge in (None, *cartridges.values())}) == 3


def test_several_cartridges_are_one_request(server, judge):
    both = server.engine.shelf.get(["ward", "firm"])
    asked = [
        {"model": "ward+firm"},
        {"model": "tiny-qwen3", "cartridges": ["ward", "firm"]},
        {"model": "tiny-qwen3", "cartridges": [{"id": "ward", "source": "local"}, {"id": "firm"}]},
    ]
    texts = {server.chat(temperature=0, **fields).json()["choices"][0]["message"]["content"] for fields in asked}
    assert texts == {judge(both).text}


def test_a_text_is_gone_on_with(server, cartridges, served_model):
    ids = served_model.ids("The ward has")
    (expected,) = Engine(served_model).generate([Request(tuple(ids), 6, cartridge=cartridges["ward"])])
    body = {"model": "ward", "max_tokens": 6, "temperature": 0}
    whole = server.post("/v1/completions", {**body, "prompt": "The ward has"}).json()
    assert whole["object"] == "text_completion" and whole["choices"][0]["text"] == expected.text
    by_ids = server.post("/v1/completions", {**body, "prompt": ids}).json()
    assert by_ids["choices"][0]["text"] == expected.text
    several = server.post("/v1/completions", {**body, "prompt": [ids, ids[:2]], "n": 2}).json()
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in several["choices"][:2]] == [expected.text] * 2
    assert several["usage"]["prompt_tokens"] == len(ids) + 2, "a prompt counts once, however many replies it gets"


def test_without_a_seed_no_two_replies_draw_alike(server, served_model):
    body = {"model": "ward", "prompt": [served_model.ids("The ward has")] * 3, "max_tokens": 12, "temperature": 1}
    body |= {"ignore_eos": True, "n": 2, "return_token_ids": True}

    def drawn(**fields):
        return [tuple(one["token_ids"]) for one in server.post("/v1/completions", {**body, **fields}).json()["choices"]]

    assert len(set(drawn())) == 6
    seeded = drawn(seed=3)
    assert seeded[:2] * 3 == seeded and seeded[0] != seeded[1], "a given seed makes of a prompt what it does alone"


def test_several_replies_read_their_prompt_once(server):
    text = "Which of the nine beds stands at the window, and who is in it? " * 4
    fields = {"temperature": 1, "max_tokens": 6, "return_token_ids": True, "ignore_eos": True}
    before = server.engine.stats()
    reply = server.chat(text, n=4, seed=5, **fields).json()
    after, usage = server.engine.stats(), reply["usage"]
    num_read = after.num_prompt_tokens - before.num_prompt_tokens
    num_read -= after.num_cached_tokens - before.num_cached_tokens
    assert num_read == usage["prompt_tokens"] + 3, "the last id of each prompt is its reply's own"
    assert usage["prompt_tokens_details"]["cached_tokens"] < 64 < usage["prompt_tokens"]
    alone = [server.chat(text, seed=5 + choice, **fields).json() for choice in range(4)]
    assert [one["token_ids"] for one in reply["choices"]] == [one["choices"][0]["token_ids"] for one in alone]
    assert usage["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"]
    again = server.chat(text, n=4, seed=5, **fields).json()
    assert again["choices"] == reply["choices"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= usage["prompt_tokens"] - 32


def test_a_stream_is_the_reply_in_pieces(server, judge):
    expected = judge(num_new=12)
    events = events_of(server.chat(temperature=0, max_tokens=12, stream=True, stream_options={"include_usage": True}))
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    *pieces, end, usage = events[1:]
    assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == expected.text
    assert len(pieces) > 3
    assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == ({}, expected.finish_reason)
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == len(expected.token_ids)
    without = events_of(server.chat(temperature=0, max_tokens=12, stream=True))
    assert [event["usage"] for event in without] == [None] * len(without)


def test_token_ids_are_told_where_they_are_asked_for(server, judge):
    expected = judge(top_k_logprobs=2)
    fields = {"return_token_ids": True, "return_tokens_as_token_ids": True, "logprobs": True, "top_logprobs": 2}
    choice = server.chat(temperature=0, **fields).json()["choices"][0]
    assert choice["token_ids"] == expected.token_ids
    content = choice["logprobs"]["content"]
    assert [entry["token"] for entry in content] == [f"token_id:{token}" for token in expected.token_ids]
    tops = [[int(top["token"].removeprefix("token_id:")) for top in entry["top_logprobs"]] for entry in content]
    assert tops == expected.logprobs.ids.tolist()
    streamed = events_of(server.chat(temperature=0, stream=True, return_token_ids=True))
    told = [token for event in streamed for token in event["choices"][0].get("token_ids", [])]
    assert told == expected.token_ids


def test_streams_tell_the_ids_of_their_prompts_where_they_are_asked_for(server, served_model):
    ids = served_model.ids("The ward has")
    fields = {"temperature": 0, "n": 2, "stream": True}
    text = {"model": "ward", "prompt": [ids, ids[:2]], "max_tokens": 3, **fields}
    for with_ids in (True, False):
        chat = events_of(server.chat(**fields, return_token_ids=with_ids))
        texts = events_of(server.post("/v1/completions", {**text, "return_token_ids": with_ids}))
        prompt = served_model.chat.prompt(BEDS)
        for events, prompts in ((chat, [prompt] * 2), (texts, [ids, ids, ids[:2], ids[:2]])):
            choices = [choice for event in events for choice in event["choices"] if "prompt_token_ids" in choice]
            assert [choice["index"] for choice in choices] == list(range(len(prompts)))[: len(prompts) * with_ids]
            assert [choice["prompt_token_ids"] for choice in choices] == prompts[: len(prompts) * with_ids]


def test_streams_of_several_replies_are_told_apart(server):
    fields = {"temperature": 1, "n": 3, "seed": 4, "max_tokens": 10}
    whole = [choice["message"]["content"] for choice in server.chat(**fields).json()["choices"]]
    found = ["", "", ""]
    for event in events_of(server.chat(**fields, stream=True)):
        for choice in event["choices"]:
            found[choice["index"]] += choice["delta"].get("content", "")
    assert found == whole


def test_a_stop_string_ends_the_reply_before_it(server, judge):
    text = judge(num_new=24).text
    stop = text[8:11]
    choice = server.chat(temperature=0, max_tokens=24, stop=[stop, "never said"]).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")
    streamed = events_of(server.chat(temperature=0, max_tokens=24, stop=stop, stream=True))
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in streamed) == text[: text.index(stop)]


def test_both_names_of_the_length_are_known(server):
    for name in ("max_tokens", "max_completion_tokens"):
        reply = server.chat(**{"max_tokens": "absent", name: 3}, ignore_eos=True, temperature=0).json()
        assert (reply["usage"]["completion_tokens"], reply["choices"][0]["finish_reason"]) == (3, "length")


def test_messages_may_come_in_parts_and_with_what_clients_add(server):
    plain = server.chat(temperature=0).json()["choices"]
    parts = [{"type": "text", "text": "How many"}, {"type": "text", "text": " beds?"}]
    message = {"role": "user", "content": parts, "name": None, "tool_calls": []}
    assert server.chat(temperature=0, messages=[message]).json()["choices"] == plain
    neutral = {"frequency_penalty": 0, "logit_bias": {}, "tools": [], "response_format": {"type": "text"}, "user": "me"}
    assert server.chat(temperature=0, **neutral).json()["choices"] == plain
    system = [{"role": "developer", "content": "Be brief."}, *BEDS]
    as_system = [{**system[0], "role": "system"}, *BEDS]
    both = [server.chat(temperature=0, messages=messages).json()["choices"] for messages in (system, as_system)]
    assert both[0] == both[1]


def test_a_prompt_read_before_is_told_as_cached(server):
    text = "The ward has nine beds and one door. " * 8
    first, second = (server.chat(text, model="firm").json()["usage"] for _ in range(2))
    assert first["prompt_tokens"] == second["prompt_tokens"]
    cached = second["prompt_tokens_details"]["cached_tokens"]
    assert second["prompt_tokens"] - 32 <= cached < second["prompt_tokens"] and cached % 16 == 0


def test_without_the_engines_thread_nothing_is_healthy(server, monkeypatch):
    monkeypatch.setattr(server.engine, "_thread", threading.Thread())  # which does not run
    reply = server.client.get("/health")
    assert (reply.status_code, reply.json()) == (503, {"status": "dead"})


def test_health_and_metrics_tell_what_is(server):
    assert server.client.get("/health").json() == {"status": "ok"}

    def counter(name):
        lines = server.client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    route = 'cartridges_requests_total{route="/v1/chat/completions",status="200"}'
    before = {name: counter(name) for name in (route, "cartridges_new_tokens_total", "cartridges_replies_total")}
    server.chat(max_tokens=5, n=2, ignore_eos=True)
    server.settle()
    assert counter(route) == before[route] + 1
    assert counter("cartridges_new_tokens_total") == before["cartridges_new_tokens_total"] + 10
    assert counter("cartridges_replies_total") == before["cartridges_replies_total"] + 2
    assert counter("cartridges_loaded") == 2 and counter("cartridges_running") == 0
