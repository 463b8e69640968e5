"""The client of the engine, judged by Hugging Face's own `generate` and by a plain forward pass."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from cartridges.clients.base import ChatRequest
from cartridges.clients.local import LocalClient
from cartridges.engine.engine import Engine
from cartridges.errors import InputError
from cartridges.template import ChatFormat
from tests.architectures import tiny

ROOM = {"role": "system", "content": "The room of Kadi Bofu is B-417."}
ASKED = [
    {"role": "user", "content": text} for text in ("What is the room?", "Who?", "Which room has Kadi Bofu, and why?")
]


@pytest.fixture(scope="module")
def client(tiny_tokenizer):
    return LocalClient(Engine(tiny("qwen3", tiny_tokenizer)))


def reply_of(client, request: ChatRequest):
    return asyncio.run(client.chat([request]))[0]


def test_it_tells_what_the_model_is(client):
    assert client.model_id == "tiny-qwen3"
    assert client.identity == client.engine.model.identity
    assert client.window == 1024
    assert client.chat_format is client.engine.model.chat


def test_messages_are_answered_as_by_generate(client):
    requests = [ChatRequest([ROOM, asked], max_new_tokens=12) for asked in ASKED]
    results = asyncio.run(client.chat(requests))
    hf, chat = client.engine.model.hf, client.chat_format
    for request, result in zip(requests, results, strict=True):
        ids = torch.tensor([chat.prompt(list(request.messages))])
        expected = hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=[*chat.stop_ids]
        )
        assert result.token_ids == expected[0, ids.shape[1] :].tolist()
        assert result.text == chat.decode(result.token_ids)
        assert result.num_prompt_tokens == ids.shape[1]
        assert result.finish_reason == ("stop" if result.token_ids[-1] in chat.stop_ids else "length")
        assert result.logprobs is None


def test_logprobs_are_those_of_a_forward_pass(client):
    prompt = client.chat_format.prompt([ROOM, ASKED[0]])
    shared = len(client.chat_format.system_prefix(ROOM["content"]))
    request = ChatRequest(
        prompt_ids=prompt,
        max_new_tokens=8,
        temperature=1.0,
        seed=3,
        top_k_logprobs=5,
        prompt_logprobs_from=len(prompt) - 6,
        shared_len=shared,
    )
    result = reply_of(client, request)
    with torch.inference_mode():
        logits = client.engine.model.hf(torch.tensor([[*prompt, *result.token_ids]])).logits[0]
    expected = logits.float().log_softmax(-1).topk(5).values.numpy()
    assert result.logprobs is not None and result.prompt_logprobs is not None
    np.testing.assert_allclose(result.logprobs.logprobs, expected[len(prompt) - 1 : -1], atol=2e-4)
    np.testing.assert_allclose(result.prompt_logprobs.logprobs, expected[len(prompt) - 7 : len(prompt) - 1], atol=2e-4)


def test_prompt_ids_go_before_messages(client):
    prompt = client.chat_format.prompt([ROOM, ASKED[1]])
    by_ids = reply_of(client, ChatRequest([ASKED[0]], prompt, max_new_tokens=6))
    assert by_ids.token_ids == reply_of(client, ChatRequest([ROOM, ASKED[1]], max_new_tokens=6)).token_ids
    assert by_ids.num_prompt_tokens == len(prompt)


def test_the_seed_decides_what_is_drawn(client):
    drawn = [
        reply_of(client, ChatRequest([ASKED[0]], max_new_tokens=10, temperature=1.0, seed=seed)).token_ids
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_thinking_is_switched_by_the_template(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path)
    tokenizer = type(tiny_tokenizer).from_pretrained(tmp_path)
    tokenizer.chat_template += "{% if not enable_thinking %}<think></think>{% endif %}"
    client = LocalClient(Engine(tiny("qwen3", tokenizer)))
    for thinking in (False, True):
        request = ChatRequest([ASKED[0]], thinking=thinking)
        expected = ChatFormat(tokenizer, thinking=thinking).prompt([ASKED[0]])
        assert list(client.engine_request(request).prompt_ids) == expected
    assert client.engine_request(ChatRequest([ASKED[0]])).prompt_ids != tuple(expected)


def test_the_loop_goes_on_while_the_engine_works(client):
    """`on_done` comes from the engine's thread, and counts every request."""
    done: list[int] = []
    threads: set[int] = set()
    beats = 0

    def on_done(num):
        done.append(num)
        threads.add(threading.get_ident())

    async def beat():
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.001)

    async def both():
        beating = asyncio.create_task(beat())
        await client.chat([ChatRequest([asked], max_new_tokens=20) for asked in ASKED], on_done)
        beating.cancel()

    asyncio.run(both())
    assert sum(done) == len(ASKED)
    assert threads != {threading.get_ident()}
    assert beats > 3


def test_a_cancelled_task_stops_the_engine(client):
    finished: list[int] = []

    async def cancel_at_the_first():
        loop, first = asyncio.get_running_loop(), asyncio.Event()

        def on_done(num):
            finished.append(num)
            loop.call_soon_threadsafe(first.set)
            gate.wait(10)

        gate = threading.Event()
        requests = [ChatRequest([ASKED[0]], max_new_tokens=num) for num in (1, 300, 300)]
        task = asyncio.create_task(client.chat(requests, on_done))
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()

    asyncio.run(cancel_at_the_first())
    assert len(finished) == 1
    assert reply_of(client, ChatRequest([ASKED[0]], max_new_tokens=2)).token_ids  # the engine is free again


def test_what_cannot_be_answered_is_told(client):
    with pytest.raises(InputError, match="without messages and without prompt_ids"):
        ChatRequest()
    with pytest.raises(InputError, match="max_new_tokens=0, expected 1 or more"):
        ChatRequest([ASKED[0]], max_new_tokens=0)
    with pytest.raises(InputError, match=r"expected at most 1024, the window of tiny-qwen3"):
        reply_of(client, ChatRequest([ASKED[0]], max_new_tokens=2000))
