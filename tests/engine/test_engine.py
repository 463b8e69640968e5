"""What the engine answers equals what the judges answer, and the same call gives the same answer."""

import numpy as np
import pytest
import torch

from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.engine.sampler import uniform
from tests.architectures import WINDOW
from tests.engine.judges import (
    NEVER,
    ids_of,
    in_small_steps,
    judge_generate,
    judge_logprobs,
    make_cartridge,
    mixed_requests,
)


# Prefix and slots each absent, shorter and longer than the window, and longer only together.
@pytest.mark.parametrize(("prefix_len", "num_slots"), [(0, 0), (4, 0), (17, 0), (0, 4), (0, 19), (5, 5), (17, 19)])
def test_greedy_replies_equal_those_of_requests_alone(model, prefix_len, num_slots):
    cartridge = make_cartridge(model, num_slots) if num_slots else None
    requests = mixed_requests(model, prefix_len, cartridge, stop_ids=NEVER, top_k_logprobs=4)
    for request, result in zip(requests, Engine(model).generate(requests), strict=True):
        assert result.token_ids == judge_generate(model, request)
        logprobs = judge_logprobs(model, request, result.token_ids)[len(request.prompt_ids) - 1 : -1]
        assert result.token_ids == logprobs.argmax(-1).tolist()
        assert result.finish_reason == "length" and result.text == model.chat.decode(result.token_ids)
        np.testing.assert_allclose(result.logprobs.logprobs, logprobs.topk(4).values, atol=1e-5)
        np.testing.assert_array_equal(result.logprobs.ids, logprobs.topk(4).indices)


def test_a_cartridge_of_a_text_equals_the_text(model):
    prefix, prompt = ids_of(model, 1, 2 * WINDOW), ids_of(model, 2, 5)
    cartridge = make_cartridge(model, len(prefix), seed=1, noise=0.0)
    behind, whole = Engine(model).generate(
        [
            Request(prompt, 16, cartridge=cartridge, stop_ids=NEVER, top_k_logprobs=3),
            Request(prefix + prompt, 16, stop_ids=NEVER, top_k_logprobs=3),
        ]
    )
    assert behind.token_ids == whole.token_ids
    np.testing.assert_allclose(behind.logprobs.logprobs, whole.logprobs.logprobs, atol=1e-5)


def test_the_stop_id_is_part_of_the_reply(qwen):
    request = Request(ids_of(qwen, 3, 6), 10, stop_ids=NEVER)
    (free,) = Engine(qwen).generate([request])
    stop = free.token_ids[4]
    (result,) = Engine(qwen).generate([Request(request.prompt_ids, 10, stop_ids=frozenset([stop]))])
    assert result.finish_reason == "stop"
    assert result.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert result.token_ids == judge_generate(qwen, Request(request.prompt_ids, 10, stop_ids=frozenset([stop])))


def test_stop_ids_default_to_those_of_the_chat_format(qwen, monkeypatch):
    request = Request(ids_of(qwen, 3, 6), 10)
    (free,) = Engine(qwen).generate([Request(request.prompt_ids, 10, stop_ids=NEVER)])
    monkeypatch.setattr(qwen.chat, "stop_ids", frozenset(free.token_ids[:1]))
    (result,) = Engine(qwen).generate([request])
    assert (result.token_ids, result.finish_reason) == (free.token_ids[:1], "stop")


@pytest.mark.parametrize("num_slots", [0, WINDOW + 2])
def test_prompt_entries_equal_those_of_a_whole_pass(model, num_slots):
    cartridge = make_cartridge(model, num_slots) if num_slots else None
    requests = mixed_requests(model, WINDOW, cartridge, 3, top_k_logprobs=5, stop_ids=NEVER)
    starts = [1, 4, WINDOW, WINDOW + 3, WINDOW + 5, 2 * WINDOW]
    requests = [
        Request(**{**vars(request), "prompt_logprobs_from": start})
        for request, start in zip(requests, starts, strict=True)
    ]
    whole = Engine(model).generate(requests)
    in_steps = in_small_steps(Engine(model), 7).generate(requests)
    for request, start, *results in zip(requests, starts, whole, in_steps, strict=True):
        expected = judge_logprobs(model, request, [])[start - 1 : -1].topk(5)
        for result in results:
            assert result.prompt_logprobs.ids.tolist() == expected.indices.tolist()
            np.testing.assert_allclose(result.prompt_logprobs.logprobs, expected.values, atol=1e-5)
            assert result.token_ids == judge_generate(model, request)


def test_entries_differ_in_number_by_request(qwen):
    prompt = ids_of(qwen, 1, 9)
    results = Engine(qwen).generate([Request(prompt, 4, top_k_logprobs=k, stop_ids=NEVER) for k in (0, 2, 7)])
    assert results[0].logprobs is None and results[0].prompt_logprobs is None
    assert results[1].logprobs.ids.shape == (4, 2) and results[2].logprobs.ids.shape == (4, 7)
    assert (results[2].logprobs.ids[:, :2] == results[1].logprobs.ids).all()
    assert results[1].logprobs.ids.dtype == np.int32 and results[1].logprobs.logprobs.dtype == np.float32


def test_no_new_tokens_but_the_prompts_entries(qwen):
    prompt = ids_of(qwen, 1, 9)
    (result,) = Engine(qwen).generate([Request(prompt, 0, top_k_logprobs=2, prompt_logprobs_from=6)])
    assert result.token_ids == [] and result.finish_reason == "length" and result.logprobs.ids.shape == (0, 2)
    assert result.prompt_logprobs.ids.shape == (3, 2)
    assert Engine(qwen).generate([]) == []


@pytest.mark.parametrize("num_slots", [0, 2 * WINDOW])
def test_distributions_equal_those_of_a_whole_pass(model, num_slots):
    cartridge = make_cartridge(model, num_slots) if num_slots else None
    prefix = ids_of(model, 7, WINDOW + 3)
    targets = [
        (prefix + ids_of(model, 1, 4), ids_of(model, 11, 9), cartridge, len(prefix)),
        (prefix + ids_of(model, 2, 1), ids_of(model, 12, 1), cartridge, len(prefix)),
        (prefix, ids_of(model, 13, 20), cartridge, len(prefix)),
        (prefix[:1], ids_of(model, 14, 6), None, 0),
    ]
    engine = Engine(model)
    whole = list(engine.distributions_batch(targets))
    in_steps = list(in_small_steps(Engine(model, 256), 5).distributions_batch(targets))
    alone = [engine.distributions(*target[:3]) for target in targets]
    for (prompt, target_ids, slots, _), *found in zip(targets, whole, in_steps, alone, strict=True):
        expected = judge_logprobs(model, Request(prompt, cartridge=slots), target_ids)[len(prompt) - 1 : -1]
        for logprobs in found:
            assert logprobs.dtype == torch.float32
            torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=1e-5)


def test_distributions_may_be_used_in_training(qwen):
    logprobs = Engine(qwen).distributions(ids_of(qwen, 1, 3), ids_of(qwen, 2, 4))
    weight = torch.ones((), requires_grad=True)
    (weight * logprobs).sum().backward()
    assert weight.grad is not None and weight.grad != 0


def test_draws_do_not_depend_on_the_batch(model):
    cartridge = make_cartridge(model, WINDOW)
    requests = [
        Request(**{**vars(request), "seed": seed, "temperature": temperature})
        for seed, (request, temperature) in enumerate(
            zip(mixed_requests(model, 5, cartridge, stop_ids=NEVER), [0.7, 1.0, 0.0, 1.5, 1.0, 0.3], strict=True)
        )
    ]
    engine = Engine(model)
    together = engine.generate(requests)
    assert [engine.generate([request])[0].token_ids for request in requests] == [r.token_ids for r in together]
    two_seeds = [Request(requests[0].prompt_ids, 12, 1.0, seed, stop_ids=NEVER) for seed in (0, 1)]
    first, second = engine.generate(two_seeds)
    assert first.token_ids != second.token_ids


def test_each_token_is_drawn_with_the_number_of_its_place(model):
    request = Request(ids_of(model, 8, 6), 10, 1.3, 5, cartridge=make_cartridge(model, 4), stop_ids=NEVER)
    (result,) = Engine(model).generate([request])
    rows = judge_logprobs(model, request, result.token_ids)[len(request.prompt_ids) - 1 : -1]
    for place, (logprobs, token) in enumerate(zip(rows, result.token_ids, strict=True)):
        sums = (logprobs.double() / 1.3).softmax(-1).cumsum(0).tolist()
        assert [0.0, *sums][token] - 1e-5 <= uniform(5, place) < sums[token] + 1e-5


def test_a_draw_at_high_temperature_follows_the_model(qwen):
    prompt, num = ids_of(qwen, 4, 6), 400
    results = Engine(qwen).generate([Request(prompt, 1, 1.0, seed, stop_ids=NEVER) for seed in range(num)])
    expected = judge_logprobs(qwen, Request(prompt), [])[-1].exp()
    best = int(expected.argmax())
    share, p = sum(result.token_ids == [best] for result in results) / num, float(expected[best])
    assert abs(share - p) < 5 * (p * (1 - p) / num) ** 0.5


def test_the_same_call_gives_the_same_bits(model):
    requests = mixed_requests(model, 6, make_cartridge(model, 5), top_k_logprobs=8, temperature=1.0, stop_ids=NEVER)
    first, second = Engine(model), Engine(model)
    runs = [first.generate(requests), first.generate(requests), second.generate(requests)]
    for results in zip(*runs, strict=True):
        assert len({tuple(result.token_ids) for result in results}) == 1
        assert len({result.logprobs.logprobs.tobytes() for result in results}) == 1


def test_bfloat16_multiplication_stays_near(qwen):
    request = Request(ids_of(qwen, 1, 8), 0, shared_len=4, top_k_logprobs=5, prompt_logprobs_from=5)
    expected = Engine(qwen).generate([request])[0].prompt_logprobs
    near = Engine(qwen, autocast_bf16=True).generate([request])[0].prompt_logprobs
    difference = abs(near.logprobs - expected.logprobs).max()
    assert 0 < difference < 0.3  # eight bits of mantissa on logits of tens
