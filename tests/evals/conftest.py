"""A tiny random model that knows the world's prompts, and a lab of the smallest size."""

import pytest

from cartridges.engine.engine import Engine
from cartridges.evals.tasks.pocket import pocket_task
from tests.architectures import tiny


@pytest.fixture(scope="session")
def engine(tiny_tokenizer):
    return Engine(tiny("qwen3", tiny_tokenizer))


@pytest.fixture(scope="session")
def task():
    return pocket_task(num_tokens=250, num_each=6, kinds=("lookup", "multiple_choice"), split="validation")
