"""Models for the engine's tests: one of each architecture, and one where that makes no difference."""

import pytest

from tests.architectures import ARCHITECTURES, tiny


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tiny_tokenizer):
    return tiny(request.param, tiny_tokenizer)


@pytest.fixture(scope="module")
def qwen(tiny_tokenizer):
    return tiny("qwen3", tiny_tokenizer)
