"""The comparisons of answering: in the quick form both sides write the same, and every part has its figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def measured(tiny_model, tiny_tokenizer, tmp_path):
    """What a script finds in its quick form with a tiny model."""
    tiny_model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")

    def run(script):
        out = tmp_path / "result.json"
        command = [sys.executable, f"benchmarks/{script}", "--quick", "--model", tmp_path / "tiny", "--out", out]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(out.read_text())

    return run


def test_every_part_is_measured(measured):
    result = measured("serving.py")
    assert {"command", "commit", "date", "versions", "hardware", "threads"} <= set(result)
    sizes = [(row["slots"], row["cartridges"]) for row in result["concurrent"]]
    assert sizes == [(16, 1), (16, 2), (32, 1), (32, 2)] and [row["slots"] for row in result["mixed"]] == [16, 32]
    for row in [*result["concurrent"], *result["mixed"]]:
        assert row["equal_tokens"] == 1 and min(row["tokens_per_s"].values()) > 0 and row["ratio"] > 0
    for mixed in result["mixed"]:
        assert sum(mixed["requests_of_each"]) == result["requests"]
        assert 4 * 2 <= mixed["wanted_tokens"] < mixed["tokens_of_batches"]
    kinds = [(row["kind"], row["length"]) for row in result["by_context"]]
    assert kinds == [("full context", 64), ("cartridge each", 16), ("one cartridge", 16)]
    assert all(row["batch"] == 4 and row["kv_mb"] > 0 for row in result["by_context"])
    assert len(result["first_token_ms"]) == 6 and min(result["first_token_ms"].values()) > 0


def test_real_sizes_can_be_tried_out_anywhere(measured):
    result = measured("serving_cuda.py")
    rows = [*result["by_context"], *result["same_batch"]["rows"]]
    assert [row["kind"] for row in rows] == [
        "full context",
        "cartridge each",
        "one cartridge",
        "full context",
        "one cartridge",
    ]
    assert all(row["tokens_per_s"] > 0 and row["batch"] >= 1 for row in rows)
    assert result["same_batch"]["ratio"] > 0 and len(result["first_token_ms"]) == 6


def test_real_sizes_need_a_device(tmp_path):
    command = [sys.executable, "benchmarks/serving_cuda.py", "--out", tmp_path / "result.json"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not any(tmp_path.iterdir())
    assert done.stderr == ("error: this measures CUDA devices, and torch sees none here; --quick only tries it out\n")


def test_without_vllm_it_says_how_to_get_it(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'vllm' else find(name, package)\n"
    )
    command = [sys.executable, "benchmarks/serving_vllm.py", "--quick"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"error: vLLM, with which this compares, is not installed in {sys.executable}; make test-vllm makes an "
        "environment with it: .venv-vllm/bin/python benchmarks/serving_vllm.py\n"
    )
