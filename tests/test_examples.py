"""The examples run as they stand, somewhere else than in this repository."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.timeout(600)
def test_the_handbook_example_ends_with_a_table_and_a_reply(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "handbook.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["method", "accuracy"]
    assert any(line.startswith("cartridge") for line in lines), done.stdout
    assert lines[-1].strip()
    assert (tmp_path / "runs" / "example" / "slots-64" / "cartridge" / "cartridge.json").is_file()
