"""One server for the tests that need nothing special of it: a tiny model, with and without cartridges."""

import pytest

from cartridges.engine.engine import Engine
from cartridges.engine.request import Request
from tests.architectures import tiny
from tests.engine.judges import make_cartridge
from tests.serving.place import running


@pytest.fixture(scope="session")
def served_model(tiny_tokenizer):
    return tiny("qwen3", tiny_tokenizer)


@pytest.fixture(scope="session")
def cartridges(served_model):
    return {name: make_cartridge(served_model, 10 + place, seed=place) for place, name in enumerate(["ward", "firm"])}


@pytest.fixture(scope="package")
def shared_server(served_model, cartridges):
    with running(served_model, cartridges) as server:
        yield server


@pytest.fixture
def server(shared_server):
    """The shared server; after the test nothing may be left in work."""
    yield shared_server
    shared_server.settle()


@pytest.fixture(scope="session")
def judge(served_model):
    """What an engine of its own answers to a chat, greedily."""
    engine = Engine(served_model)

    def judge(cartridge=None, num_new=8, **options):
        ids = served_model.chat.prompt([{"role": "user", "content": "How many beds?"}])
        request = Request(tuple(ids), num_new, cartridge=cartridge, **options)
        return engine.generate([request])[0]

    return judge
