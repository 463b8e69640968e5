"""Every benchmark runs in its quick form and writes what the documentation reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_pocket_training(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "benchmarks/pocket_training.py", "--quick", "--steps", "1", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"command", "commit", "date", "versions", "hardware"} <= set(result)
    assert {(row["length"], row["attention"]) for row in result["rows"]} == {
        (length, attention) for length in (128, 320) for attention in ("sdpa", "eager", "pocket_training")
    }
    assert all(row["tokens_per_s"] > 0 for row in result["rows"])
    assert "training, tokens/s (median)" in done.stdout


def test_transmute_memory(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "benchmarks/transmute.py", "--quick", "--only", "memory", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    small, large = json.loads(out.read_text())["memory"]["rows"]
    assert (small["num_conversations"], large["num_conversations"]) == (64, 128)
    assert small["statistics_bytes"] == large["statistics_bytes"] > 0
