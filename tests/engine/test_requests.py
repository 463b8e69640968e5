"""What cannot be answered is told in one line, before any work."""

import numpy as np
import pytest
import torch

from cartridges.conversation import TopK
from cartridges.engine.engine import Engine
from cartridges.engine.request import Event, Request
from cartridges.errors import CartridgesError, FormatError, InputError
from tests.architectures import tiny
from tests.engine.judges import make_cartridge


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_ids": ()}, "request 0 has an empty prompt, expected at least one token id"),
        ({"prompt_ids": (5, 99999)}, r"request 0 has the token id 99999, expected 0 to \d+; use the tokenizer of tiny"),
        ({"prompt_ids": (-1, 5)}, "has the token id -1, expected 0 to"),
        ({"max_new_tokens": -1}, "has max_new_tokens=-1 and shared_len=0, expected numbers from 0 on"),
        ({"temperature": -0.5}, r"has temperature=-0.5, expected 0 \(greedy\) or a number above"),
        ({"temperature": float("nan")}, "has temperature=nan"),
        ({"top_k_logprobs": 100000}, r"has top_k_logprobs=100000, expected 0 to \d+, the vocabulary's size"),
        ({"prompt_logprobs_from": 0, "top_k_logprobs": 1}, "has prompt_logprobs_from=0, expected 1 to 4, the prompt's"),
        ({"prompt_logprobs_from": 5, "top_k_logprobs": 1}, "has prompt_logprobs_from=5, expected 1 to 4"),
        ({"prompt_logprobs_from": 2}, "has prompt_logprobs_from but top_k_logprobs=0; give the number of entries"),
    ],
)
def test_requests_that_cannot_be_answered(qwen, options, message):
    request = Request(**{"prompt_ids": (5, 6, 7, 8), **options})
    with pytest.raises(InputError, match=message):
        Engine(qwen).generate([request])


def test_what_exceeds_the_window_is_told_with_its_numbers(qwen):
    slots = make_cartridge(qwen, 9)
    engine, fits = Engine(qwen), Request((5,) * 1005, 10, cartridge=slots)
    assert engine.generate([fits])[0].num_prompt_tokens == 1005
    message = "has 9 slots . 1006 prompt tokens . 10 new tokens = 1025, expected at most 1024, the window of tiny-qwen3"
    with pytest.raises(InputError, match=message):
        engine.generate([Request((5,) * 1006, 10, cartridge=slots)])
    with pytest.raises(InputError, match="the request " + message):
        engine.stream(Request((5,) * 1006, 10, cartridge=slots))
    with pytest.raises(InputError, match="target 0 " + message):
        engine.distributions((5,) * 1006, (6,) * 10, slots)


def test_targets_that_cannot_be_told(qwen):
    with pytest.raises(InputError, match="target 1 is empty, expected at least one token id"):
        Engine(qwen).distributions_batch([((5,), (6,), None, 0), ((5,), (), None, 0)])
    with pytest.raises(InputError, match="target 0 has the token id 99999"):
        Engine(qwen).distributions((5,), (99999,))


def test_a_cartridge_of_another_model_is_refused(qwen, tiny_tokenizer):
    slots = make_cartridge(tiny("llama", tiny_tokenizer), 4)
    with pytest.raises(FormatError, match="was made for tiny-llama, given tiny-qwen3: other layers"):
        Engine(qwen).generate([Request((5,), 1, cartridge=slots)])


def test_a_limit_without_room_is_refused(qwen):
    with pytest.raises(InputError, match="given kv_tokens_total=0, expected 16 or more"):
        Engine(qwen, kv_tokens_total=0)


def test_a_model_that_gives_no_numbers_stops_the_run(tiny_tokenizer):
    broken = tiny("qwen3", tiny_tokenizer)
    with torch.no_grad():
        broken.hf.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(CartridgesError, match="the model gave logits that are no finite numbers"):
        Engine(broken).generate([Request((5,), 1)])


def test_events_that_follow_one_another_become_one():
    rows = [TopK(np.array([[n, n + 1]], np.int32), np.array([[-0.1, -3.0]], np.float32)) for n in (4, 8)]
    first, second = (Event([token], text, [-0.1], row) for token, text, row in zip((4, 8), "ab", rows, strict=True))
    end = Event([], "c", [], None, "stop")
    assert Event.of([first]) is first
    both = Event.of([first, second, end])
    assert (both.token_ids, both.text, both.chosen_logprobs) == ([4, 8], "abc", [-0.1, -0.1])
    assert (both.finish_reason, both.error, both.logprobs) == ("stop", "", TopK.concat(rows))
    assert Event.of([end, Event([], "", [], None, "error", "no memory")]).error == "no memory"
