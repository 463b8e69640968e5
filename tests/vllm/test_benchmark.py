"""The comparison of the two servers runs in its quick form, and both write the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SIDES = {"engine", "vLLM"}


@pytest.mark.timeout(1200)
def test_both_servers_are_asked(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "benchmarks/serving_vllm.py", "--quick", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"command", "commit", "date", "versions", "hardware"} <= set(result) and result["versions"]["vllm"]
    assert set(result["idle_cores"]) == set(result["startup_s"]) == SIDES
    assert [row["cartridges"] for row in result["rows"]] == [1, 4, 0]
    for row in result["rows"]:
        assert row["equal_tokens"] > 0.9  # float32 on both sides; where two tokens are nearly tied, sums may decide
        assert set(row["tokens_per_s"]) == SIDES and min(row["tokens_per_s"].values()) > 0
        assert set(row["first_token_ms"]) == SIDES and min(row["first_token_ms"].values()) > 0
