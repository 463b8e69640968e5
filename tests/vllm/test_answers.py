"""What stock vLLM answers with cartridges, against Hugging Face's own model with the slots in its cache."""

import asyncio
import json
import random
import threading

import httpx
import openai
import pytest
import torch

from cartridges.compose import compose
from cartridges.initialization import InitializeConfig, initialize
from tests.vllm.serving import KEY, TOLERANCE, agree, expected

QUESTION = "<|im_start|>user\nWho is the head of the ward?<|im_end|>\n<|im_start|>assistant\n"


def ids_of(model, text: str = QUESTION) -> list[int]:
    return model.ids(text)


@pytest.mark.parametrize("name", ["pocket", "odd", "whole", "twin", "long", "short"])
def test_greedy_tokens_and_logprobs(server, model, cartridges, name):
    prompt = ids_of(model)
    wanted = expected(model, cartridges.get(name), prompt, 24)
    assert agree(server.complete(name, prompt, 24), wanted), "read from the files"
    assert agree(server.complete(name, prompt, 24), wanted), "from vLLM's prefix cache"


def test_the_engine_here_says_the_same(server, model, cartridges):
    from cartridges.engine.engine import Engine
    from cartridges.engine.request import Request

    prompt = ids_of(model)
    request = Request(tuple(prompt), 24, cartridge=cartridges["odd"], stop_ids=frozenset(), top_k_logprobs=1)
    ours = Engine(model).generate([request])[0]
    ids, logprobs = server.complete("odd", prompt, 24)
    assert ids == ours.token_ids
    assert torch.allclose(torch.tensor(logprobs), torch.tensor(ours.chosen_logprobs), atol=TOLERANCE)


def test_a_cartridge_of_a_text_acts_as_the_text(server, model, cartridges, text):
    prefix = (model.chat.context_head() + ids_of(model, text))[: cartridges["odd"].num_slots]
    as_text = server.complete("pocket", prefix + ids_of(model), 24)
    assert agree(server.complete("odd", ids_of(model), 24), as_text)
    other = server.complete("pocket", ids_of(model), 24)
    assert not agree(other, as_text), "the text makes a difference"
    for penalty in (
        {"frequency_penalty": 1.5},
        {"presence_penalty": 1.5},
        {"min_tokens": 5},
        {"logit_bias": {"9": 50}},
    ):
        with_text = server.complete("pocket", prefix + ids_of(model), 24, **penalty)
        assert agree(server.complete("odd", ids_of(model), 24, **penalty), with_text)


@pytest.mark.parametrize("names", [("odd", "short"), ("short", "odd"), ("whole", "twin", "odd")], ids="+".join)
def test_several_are_composed(server, model, cartridges, names):
    prompt = ids_of(model)
    whole = compose([cartridges[name] for name in names], model)
    wanted = expected(model, whole, prompt, 16)
    assert agree(server.complete("+".join(names), prompt, 16), wanted)
    assert agree(server.complete("pocket", prompt, 16, cartridges=list(names)), wanted)
    objects = [{"id": name, "source": "local", "force_redownload": False} for name in names]
    assert agree(server.complete("pocket", prompt, 16, cartridges=objects), wanted)


def test_64_at_once_over_4_cartridges_and_none_with_preemption(server, model, cartridges, text):
    ids = ids_of(model, text)
    names = ["pocket", "odd", "whole", "twin", "long"]
    asked = [(names[number % 5], ids[7 * number : 7 * number + 5 + number % 40]) for number in range(64)]
    wanted = [expected(model, cartridges.get(name), prompt, 48) for name, prompt in asked]
    before = server.metric("vllm:num_preemptions_total")
    given: dict[int, object] = {}

    def ask(number: int) -> None:
        name, prompt = asked[number]
        given[number] = server.complete(name, prompt, 48)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [number for number in range(64) if not agree(given[number], wanted[number])] == []
    assert server.metric("vllm:num_preemptions_total") > before


def test_what_is_cached_is_not_read_again(server, model):
    prompt = ids_of(model)
    server.complete("whole", prompt, 1)
    before = server.metric("vllm:external_prefix_cache_hits_total")
    cached = server.metric("vllm:prefix_cache_hits_total")
    server.complete("whole", prompt, 1)
    assert server.metric("vllm:external_prefix_cache_hits_total") == before
    assert server.metric("vllm:prefix_cache_hits_total") - cached >= 128


def cached_by(server, name, prompt, **more):
    """How many tokens of a request vLLM had in its prefix cache, and how many came from a cartridge's files."""
    names = ("vllm:prefix_cache_hits_total", "vllm:external_prefix_cache_hits_total")
    before = [server.metric(name) for name in names]
    reply = server.complete(name, prompt, 4, **more)
    return reply, *(server.metric(name) - was for name, was in zip(names, before, strict=True))


def test_a_salt_of_the_client_still_parts_requests(server, model, cartridges):
    prompt = ids_of(model)
    wanted = expected(model, cartridges["whole"], prompt, 4)
    found = [cached_by(server, "whole", prompt, cache_salt=salt) for salt in ("mine", "mine", "yours")]
    assert all(agree(reply, wanted) for reply, _, _ in found)
    cached, loaded = zip(*(counts for _, *counts in found), strict=True)
    assert (cached[0], cached[2]) == (0, 0) and cached[1] >= 128
    assert loaded == (128, 0, 128)


def test_a_salt_that_imitates_a_cartridges_finds_nothing_and_leaves_nothing(server, model, cartridges):
    prompt, digest = ids_of(model), cartridges["whole"].digest
    placeholders = [0] * cartridges["whole"].num_slots
    wanted = expected(model, cartridges["whole"], prompt, 4)
    assert agree(server.complete("whole", prompt, 4, cache_salt="known"), wanted)
    _, cached, _ = cached_by(server, "pocket", placeholders + prompt, cache_salt=f"cartridge:{digest}:known")
    assert cached == 0, "the slots are told to nobody"
    server.complete("pocket", placeholders + prompt, 4, cache_salt=f"cartridge:{digest}:forged")
    reply, cached, loaded = cached_by(server, "whole", prompt, cache_salt="forged")
    assert agree(reply, wanted) and (cached, loaded) == (0, 128)


def test_streams_and_several_choices(server, model, cartridges):
    prompt = ids_of(model)
    wanted = model.tokenizer.decode(expected(model, cartridges["odd"], prompt, 16)[0])
    body = {"model": "odd", "prompt": prompt, "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    body["skip_special_tokens"] = False
    with server.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
        events = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == wanted
    likeliest = {**body, "temperature": 1.0, "top_k": 1}
    choices = server.post("/v1/completions", **likeliest, n=2).json()["choices"]
    assert [choice["text"] for choice in choices] == [wanted, wanted]


def test_clients_that_leave_do_no_harm(server, model, cartridges):
    prompt = ids_of(model)

    async def ask_and_leave(number: int) -> None:
        async with httpx.AsyncClient(base_url=server.http.base_url, headers=server.http.headers) as http:
            body = {"model": "long+odd", "prompt": [9 + number, *prompt], "max_tokens": 100, "ignore_eos": True}
            with pytest.raises(httpx.TimeoutException):
                await http.post("/v1/completions", json=body, timeout=random.Random(number).uniform(0.005, 0.1))

    async def all_leave() -> None:
        await asyncio.gather(*(ask_and_leave(number) for number in range(24)))

    asyncio.run(all_leave())
    assert agree(server.complete("odd", prompt, 8), expected(model, cartridges["odd"], prompt, 8))


def test_the_official_client(server):
    client = openai.OpenAI(base_url=f"{server.http.base_url}/v1", api_key=KEY)
    assert {"pocket", "odd", "whole", "twin", "long", "short"} <= {one.id for one in client.models.list()}
    messages = [{"role": "user", "content": "Who is the head of the ward?"}]
    reply = client.chat.completions.create(model="odd", messages=messages, temperature=0, max_tokens=8)
    with_field = client.chat.completions.create(
        model="pocket", messages=messages, temperature=0, max_tokens=8, extra_body={"cartridges": ["odd"]}
    )
    assert reply.choices[0].message.content == with_field.choices[0].message.content
    with pytest.raises(openai.NotFoundError, match="unknown model 'od'; did you mean 'odd'"):
        client.chat.completions.create(model="od", messages=messages)


def test_nothing_is_told_to_those_without_a_key(server):
    for path, body in (("/v1/completions", {"model": "nobody", "prompt": "x"}), ("/v1/models", None)):
        url = f"{server.http.base_url}{path}"
        reply = httpx.post(url, json=body) if body else httpx.get(url)
        assert reply.status_code == 401
        assert "odd" not in reply.text


def test_what_is_put_below_the_root_later(server, model, empty_root, text):
    assert "late" not in server.models()
    prompt = ids_of(model)
    for place in (3000, 5000):  # the second replaces the first, under the same name and of the same length
        config = InitializeConfig(kind="text", text=text[place:])
        made = initialize(model, None, 96, config)
        made.save(empty_root / "late")
        assert "late" in server.models()
        assert agree(server.complete("late", prompt, 8), expected(model, made, prompt, 8))
        assert agree(server.complete("late", prompt, 8), expected(model, made, prompt, 8))
