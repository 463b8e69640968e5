"""The example of docs/extending.md: it runs as it stands, in under 40 lines a task or method, and measures sense."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROGRAM = re.search(r"^```python\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(), re.M | re.S)[1]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extending")
    (folder / "own.py").write_text(PROGRAM)
    run = [sys.executable, "own.py"]
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}


def test_it_is_short():
    assert len(PROGRAM.splitlines()) < 40 + 6  # task and method together, with the loop that prints


def test_the_right_document_beats_the_last_one_and_nothing(told):
    assert told["document"] == 1.0 and told["last_document"] == 0.5 and told["no_context"] == 0.0
