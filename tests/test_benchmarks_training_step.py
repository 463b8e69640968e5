"""The comparison with PEFT runs in its quick form, and says what is missing where there is no PEFT."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from cartridges.conversation import Conversation, TopK
from cartridges.dataset import Dataset
from cartridges.errors import CartridgesError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tiny_path(tiny_model, tiny_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_model.save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/training_step.py", "--quick", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_both_sides_are_measured(tiny_path, tmp_path):
    out = tmp_path / "result.json"
    done = run("--model", tiny_path, "--slots", 16, "--conversations", 5, "--out", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"command", "commit", "date", "versions", "hardware", "threads"} <= set(result)
    assert result["versions"]["peft"]
    assert abs(result["untrained_loss"]["ours"] - result["untrained_loss"]["peft"]) < 1e-3
    assert result["untrained_loss"]["relative_gradient_difference"] < 1e-3
    settings = [row["setting"] for row in result["rows"] if row["side"] == "PEFT"]
    assert settings == [
        f"{batches} conversations, {attention}" for batches in ("1 x 5", "2 x 4") for attention in ("sdpa", "eager")
    ]
    assert all(row["peak_mb"] > 0 and len(row["all"]) == 2 and min(row["all"]) > 0 for row in result["rows"])
    ours = [row for row in result["rows"] if row["side"] == "packed rows"]
    assert {row["num_computed_tokens"] for row in ours} == {result["tokens"]}
    low, high = result["speed_ratio_range"]
    assert 0 < low <= high
    assert "fastest by fastest" in done.stdout
    example = [row for row in result["rows"] if row["side"] == "PEFT, teacher in the step"]
    assert [row["setting"] for row in example] == [
        f"{batches} conversations, {attention}" for batches in ("1 x 5", "5 x 1") for attention in ("sdpa", "eager")
    ]
    assert example[-1]["num_computed_tokens"] == 2 * result["tokens"] + 5 * result["context"]
    low, high = result["teacher_in_step"]["speed_ratio_range"]
    assert 0 < low <= high


def test_the_teacher_in_the_step_is_the_plain_model_behind_the_context(tiny_model, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from peft_tuner import PeftTuner, padded

    rows = TopK([[5, 6, 7]] * 2, [[-1.0, -2.0, -3.0]] * 2)
    said = [{"role": "user", "content": "a"}]
    talks = [
        Conversation(index, said, list(range(9 + 3 * index)), [1, 6], rows, "", 0, 0, "random", 0, 0)
        for index in range(2)
    ]
    batch, context_ids = padded(talks, torch.device("cpu")), torch.arange(20, 31)
    tuner = SimpleNamespace(run=SimpleNamespace(model=SimpleNamespace(hf=tiny_model)))
    taught = PeftTuner.taught(cast("PeftTuner", tuner), batch, context_ids)
    for row, talk in enumerate(talks):
        ids = torch.tensor([[*context_ids.tolist(), *talk.token_ids.tolist()]])
        with torch.no_grad():
            wanted = tiny_model(ids).logits[0, 11:].float().log_softmax(-1).topk(3)
        found = taught.teacher_probs_BTK[row, : talk.num_tokens]
        assert torch.allclose(found, wanted.values.exp(), atol=1e-5)
        assert torch.equal(taught.teacher_ids_BTK[row, : talk.num_tokens], wanted.indices)
    assert torch.equal(taught.is_target_BT, batch.is_target_BT)


def test_a_dataset_of_unlike_teachers_gives_the_same_loss(tiny_path, tmp_path):
    said, talks = [{"role": "user", "content": "a"}], []
    for index, logprobs in enumerate(([-0.1], [-0.5, -1.5, -3.0])):
        rows = TopK([list(range(5, 5 + len(logprobs)))] * 2, [logprobs] * 2)
        talks.append(Conversation(index, said, list(range(9 + index)), [1, 6], rows, "", 0, 0, "random", 0, 0))
    Dataset.from_conversations(talks).save(tmp_path / "data")
    given = ("--model", tiny_path, "--slots", 16, "--dataset", tmp_path / "data", "--repetitions", 1)
    done = run(*given, "--conversations", 2)  # which fails where the losses differ
    assert done.returncode == 0, done.stderr
    refused = run(*given, "--conversations", 3)
    assert refused.returncode == 2
    assert "with 2 conversations, expected at least 3" in refused.stderr


def test_what_is_too_large_is_told(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from training_step import OURS, PEFT, Setting, compared, measure

    def too_large():
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    settings = [
        Setting(OURS, "small", lambda: float(torch.ones(1 << 20).sum()), nullcontext, 10),
        Setting(OURS, "large", too_large, nullcontext, 10),
        Setting(PEFT, "large", too_large, nullcontext, 10),
    ]
    rows = measure(settings, 10, 2, torch.device("cpu"))
    assert [(row["setting"], "all" in row) for row in rows] == [("small", True), ("large", False), ("large", False)]
    with pytest.raises(CartridgesError, match="all settings of PEFT are too large for this device; give"):
        compared(rows, PEFT)
    assert compared([*rows, {**rows[0], "side": PEFT}], PEFT)["fastest"] == {OURS: "small", PEFT: "small"}


def test_without_peft_it_says_what_to_install(tmp_path):
    (tmp_path / "peft.py").write_text("raise ImportError('no such package')\n")
    done = run(PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert (
        done.stderr == "error: PEFT, with which this compares, is not installed or too old; pip install 'peft>=0.21'\n"
    )
