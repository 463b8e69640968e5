"""A tiny random model with a real tokenizer, made once."""

import pytest

from cartridges.pocket.recipe import PocketConfig
from cartridges.pocket.tokenizer import sample_texts, train_tokenizer


@pytest.fixture(scope="session")
def tiny_config() -> PocketConfig:
    return PocketConfig.resolve("tiny")


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_config):
    return train_tokenizer(tiny_config.vocab_size, sample_texts(50))


@pytest.fixture(scope="session")
def tiny_model(tiny_config, tiny_tokenizer):
    from cartridges.pocket.train import build_model

    return build_model(tiny_config, tiny_tokenizer).eval()
