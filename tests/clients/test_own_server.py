"""Our own server, asked by our own clients: the same replies as of the engine, over HTTP."""

import asyncio

import pytest

from cartridges.clients.local import LocalClient
from cartridges.clients.openai import OpenaiDialect, stream_chat
from cartridges.clients.pool import Pool, PoolConfig
from cartridges.clients.remote import RemoteClient, asked_about, connect
from cartridges.clients.tokasaurus import WITH_CARTRIDGES, TokasaurusDialect
from cartridges.clients.vllm import VllmDialect
from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from cartridges.errors import InputError
from tests.architectures import tiny
from tests.clients.test_pool import check_kill, started
from tests.clients.test_remote import check_same, requests_of
from tests.engine.judges import make_cartridge
from tests.serving.place import running

OWN = {
    "vllm": VllmDialect("cartridges"),
    "openai": OpenaiDialect(),
    "tokasaurus": TokasaurusDialect(WITH_CARTRIDGES),
}


@pytest.fixture(scope="module")
def engine(tiny_tokenizer):
    return Engine(tiny("qwen3", tiny_tokenizer))


@pytest.fixture(scope="module")
def cartridges(engine):
    return {name: make_cartridge(engine.model, 10, seed=place) for place, name in enumerate(["ward", "firm"])}


@pytest.fixture(scope="module")
def server(engine, cartridges):
    with running(engine.model, cartridges) as server:
        yield server


@pytest.mark.parametrize("dialect", list(OWN))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_gives_what_the_engine_gives(engine, server, dialect, temperature):
    name = engine.model.identity.model_id
    client = RemoteClient(Pool([server.url], PoolConfig.resolve()), OWN[dialect], engine.model.chat, name)
    requests = requests_of(engine, 8, temperature=temperature)
    check_same(asyncio.run(client.chat(requests)), asyncio.run(LocalClient(engine).chat(requests)))


def test_it_tells_what_it_serves(engine, server, tmp_path):
    engine.model.tokenizer.save_pretrained(tmp_path)
    client = connect([server.url], "vllm", str(tmp_path))
    assert (client.served_name, client.window) == (engine.model.identity.model_id, engine.model.window)
    assert isinstance(client.dialect, VllmDialect) and client.dialect.owner == "cartridges"
    assert {"ward", "firm"} < {entry["id"] for entry in asked_about(client.pool)}


def test_a_chat_is_streamed_behind_cartridges(engine, server, cartridges):
    messages = [{"role": "user", "content": "What is the room?"}]
    ids = tuple(engine.model.chat.prompt(messages))
    for names in (["ward"], ["ward", "firm"]):
        whole = engine.shelf.composed([cartridges[name] for name in names])
        expected = engine.generate([Request(ids, 9, cartridge=whole)])[0].text
        assert "".join(stream_chat(server.url, messages, "+".join(names), max_new_tokens=9)) == expected
    with pytest.raises(InputError, match=r"refused the request \(404\): unknown model 'wrd'; did you mean 'ward'"):
        list(stream_chat(server.url, messages, "wrd"))


def test_one_of_two_is_killed_and_nothing_is_lost_or_doubled(tmp_path):
    for processes in started(["cartridges", "serve", "--model", "pocket", "--port", "0"]):
        check_kill(processes, tmp_path)
