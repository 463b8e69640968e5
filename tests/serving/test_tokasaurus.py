"""The routes that clients of Tokasaurus ask, read as those clients read them."""

import json

import pytest

from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from tests.serving.place import error_of

CHAT, TEXT = "/custom/cartridge/chat/completions", "/custom/cartridge/completions"
BEDS = [{"role": "user", "content": "How many beds?"}]
WARD = [{"id": "ward", "source": "wandb", "force_redownload": False}]


@pytest.fixture
def expected(served_model, cartridges):
    ids = tuple(served_model.chat.prompt(BEDS))
    request = Request(ids, 8, top_k_logprobs=5, cartridge=cartridges["ward"])
    return Engine(served_model).generate([request])[0]


def test_without_logprobs_the_ids_are_told(server, expected):
    reply = server.post(CHAT, {"messages": BEDS, "max_tokens": 8, "cartridges": WARD, "n": 2}).json()
    told = json.loads(reply["system_fingerprint"])
    assert told == {
        "completion_ids": [expected.token_ids] * 2,
        "packed_chosen_logprobs": None,
        "packed_topk_indices": None,
        "packed_topk_logprobs": None,
    }


def test_a_text_and_several_cartridges(server, served_model):
    both = server.engine.shelf.get(["ward", "firm"])
    ids = served_model.ids("The ward has")
    (result,) = Engine(served_model).generate([Request(tuple(ids), 6, cartridge=both)])
    named = [{"id": "ward", "source": "local"}, {"id": "firm", "source": "huggingface"}]
    reply = server.post(TEXT, {"model": "", "prompt": ids, "max_tokens": 6, "cartridges": named}).json()
    assert reply["choices"][0]["text"] == result.text


def test_any_model_is_the_base_unless_a_cartridge_has_the_name(server, cartridges):
    def slots_of(model):
        reply = server.post(CHAT, {"model": model, "messages": BEDS, "max_tokens": 1}).json()
        return reply["usage"]["prompt_tokens_details"]["cartridge_slots"]

    assert slots_of("default") == slots_of("") == 0
    server.engine.shelf.add("default", cartridges["firm"])
    try:
        assert slots_of("default") == cartridges["firm"].num_slots and slots_of("") == 0
    finally:
        server.engine.shelf.remove("default")


def test_nothing_is_downloaded(server):
    body = {"messages": BEDS, "cartridges": [{"id": "wv3q9fae", "source": "wandb"}]}
    assert error_of(server.post(CHAT, body), 404)["code"] == "cartridge_not_found"
    forced = {"messages": BEDS, "cartridges": [{"id": "ward", "source": "wandb", "force_redownload": True}]}
    assert error_of(server.post(CHAT, forced))["param"] == "cartridges.0.force_redownload"
    assert error_of(server.post(CHAT, {"messages": BEDS, "model": "nobody"}), 404)["param"] == "model"
    assert error_of(server.post(CHAT, {"messages": BEDS, "stream": True}))["param"] == "stream"
