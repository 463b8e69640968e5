"""Conversations to try datasets with, and what is said where one is refused."""

import random
from pathlib import Path

import numpy as np
import pytest

from cartridges.conversation import Conversation, TopK
from cartridges.dataset import Dataset, DatasetWriter


def make(index: int, num_top: int = 3, num_targets: int | None = None) -> Conversation:
    rng = np.random.default_rng(index)
    num_targets = int(rng.integers(0, 6)) if num_targets is None else num_targets
    ids = np.array([rng.permutation(50)[:num_top] for _ in range(num_targets)], np.int32).reshape(-1, num_top)
    logprobs = -np.sort(rng.uniform(2, 9, size=(num_targets, num_top)), axis=1)
    return Conversation(
        index=index,
        messages=[{"role": "user", "content": f"Who is № {index}?\n"}, {"role": "assistant", "content": "Nobody. 🙂"}],
        token_ids=rng.integers(0, 50, size=num_targets + 2),
        target_positions=np.arange(num_targets) + 2,
        teacher=TopK(ids, logprobs),
        document="" if index % 3 == 0 else f"docs/{index % 5}.md",
        start=index,
        stop=index + 100,
        seed_kind="question",
        num_prompt_tokens=2**33 + index,
        num_new_tokens=num_targets,
    )


def refused(kind, action, *given, **options) -> str:
    with pytest.raises(kind) as caught:
        action(*given, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(folder: Path, conversations: list[Conversation]) -> Path:
    """Three shards in a folder, written out of order, of 40 conversations out of order."""
    writer = DatasetWriter(folder)
    mixed = random.Random(0).sample(conversations, len(conversations))
    for number in (2, 0, 11):
        writer.write_shard(number, [mixed.pop() for _ in range(13 if number else 14)])
    assert not mixed
    Dataset.save_manifest(folder, {"num_kept": 40, "model": {"model_id": "pocket – é"}})
    return folder
