"""Cartridges of the bundled model that nothing has trained: each must act as the text that it was made from."""

import importlib.util
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
if importlib.util.find_spec("vllm") is None:  # as in the environment of all other tests; `make test-vllm` has it
    collect_ignore_glob = ["test_*.py"]

import pytest
import torch

from cartridges.cartridge import Cartridge
from cartridges.corpus import Corpus
from cartridges.initialization import InitializeConfig, initialize
from cartridges.model import Model, load_model
from cartridges.pocket import WARD
from tests.vllm.serving import Server

SIZES = {"odd": 101, "whole": 128, "long": 200, "short": 5}  # blocks are of 32 tokens: whole ones, and not


@pytest.fixture(scope="session")
def model() -> Model:
    torch.set_num_threads(1)
    return load_model("pocket")


@pytest.fixture(scope="session")
def text() -> str:
    return Corpus.from_path(WARD / "documents").text


@pytest.fixture(scope="session")
def cartridges(model, text) -> dict[str, Cartridge]:
    """Each of another part of the text, so that they differ; alike in length with another: `twin` and `whole`."""
    made = {}
    for place, (name, num_slots) in enumerate([*SIZES.items(), ("twin", SIZES["whole"])]):
        config = InitializeConfig(kind="text", text=text[900 * place :])
        made[name] = initialize(model, None, num_slots, config)
        made[name].manifest.name = name
    return made


@pytest.fixture(scope="session")
def folders(cartridges, tmp_path_factory) -> dict[str, Path]:
    """The cartridges that the servers are started with."""
    top = tmp_path_factory.mktemp("cartridges")
    for name, cartridge in cartridges.items():
        cartridge.save(top / name)
    return {name: top / name for name in cartridges}


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def empty_root(root) -> Path:
    for path in root.iterdir():
        shutil.rmtree(path)
    return root


@pytest.fixture(scope="session")
def server(folders, root, tmp_path_factory):
    """The server of most tests: prefix caching, and memory for few requests at once, so that some are preempted."""
    extra = ["--max-model-len", "512", "--block-size", "32", "--num-gpu-blocks-override", "48"]
    with Server(tmp_path_factory.mktemp("log") / "server.log", folders, [root], extra) as running:
        yield running
