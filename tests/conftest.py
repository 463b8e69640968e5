"""Tests never reach for the network; a tiny random model with a real tokenizer is made once."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

from cartridges.pocket.recipe import PocketConfig
from cartridges.pocket.tokenizer import sample_texts, train_tokenizer


def pytest_configure():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored


@pytest.fixture(scope="session")
def tiny_config() -> PocketConfig:
    return PocketConfig.resolve("tiny")


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_config):
    return train_tokenizer(tiny_config.vocab_size, sample_texts(50))


@pytest.fixture(scope="session")
def tiny_model(tiny_config, tiny_tokenizer):
    import torch

    from cartridges.pocket.step import build_model

    model = build_model(tiny_config, tiny_tokenizer).eval()
    with torch.no_grad():  # as initialised it repeats its input; with larger weights it says something
        for layer in model.model.layers:
            for matrix in (layer.self_attn.v_proj, layer.self_attn.o_proj, layer.mlp.up_proj, layer.mlp.down_proj):
                matrix.weight *= 12
    return model
