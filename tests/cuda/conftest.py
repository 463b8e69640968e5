"""What only a CUDA device can show: `make test-cuda`, or pytest with this folder, where there is one."""

import pytest
import torch

from tests.architectures import tiny

if not torch.cuda.is_available():  # `tests/engine/test_flash.py` has what can be shown without
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    """Heads as large as real ones, four for each of keys, and in bfloat16."""
    made = tiny("llama", tiny_tokenizer, head_dim=128, num_attention_heads=8, num_key_value_heads=2)
    made.hf.to("cuda", torch.bfloat16)
    return made
