"""Our clients of stock vLLM: greedy, it writes the same conversations as the engine of this process."""

import numpy as np

from cartridges.clients.openai import stream_chat
from cartridges.clients.remote import connect
from cartridges.engine.engine import Engine
from cartridges.synthesis import synthesize
from tests.server import config_of, make_corpus
from tests.vllm.serving import KEY


def url_of(server) -> str:
    return str(server.http.base_url)


def test_synthesize_gives_the_same_data(server, model, tmp_path):
    lengths = {"chunk__min_len": 20, "chunk__max_len": 60, "question__max_new_tokens": 24, "answer__max_new_tokens": 32}
    config = config_of(num_conversations=32, question__temperature=0.0, question_logprobs=True, **lengths)
    expected = synthesize(make_corpus(), Engine(model), config, tmp_path / "local")
    client = connect([url_of(server)], "vllm", "pocket", api_key=KEY)
    found = synthesize(make_corpus(), client, config, tmp_path / "remote")
    assert len(found.conversations) == len(expected.conversations) > 8
    for mine, theirs in zip(found.conversations, expected.conversations, strict=True):
        assert (mine.messages, mine.token_ids.tolist()) == (theirs.messages, theirs.token_ids.tolist())
        np.testing.assert_allclose(mine.teacher.logprobs, theirs.teacher.logprobs, atol=1e-3)


def test_a_chat_is_streamed_behind_a_cartridge(server, model, cartridges):
    messages = [{"role": "user", "content": "Who is the head of the ward?"}]
    expected = Engine(model).chat(messages[0]["content"], cartridges=[cartridges["odd"]], max_new_tokens=16)
    assert "".join(stream_chat(url_of(server), messages, "odd", max_new_tokens=16, api_key=KEY)) == expected
