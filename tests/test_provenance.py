"""Where results come from."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from cartridges.provenance import commit, commit_of, package_version, provenance


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a checkout of its own, with all committed."""
    package = tmp_path / "cartridges"
    package.mkdir()
    (package / "train.py").write_text("lr = 1\n")
    (package / "weights.safetensors").write_bytes(b"\0\1")
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / ".gitignore").write_text("build/\n")
    for arguments in ("init -q", "add .", "-c user.name=a -c user.email=a@b -c commit.gpgsign=false commit -q -m one"):
        subprocess.run(["git", "-C", str(tmp_path), *arguments.split()], check=True)
    return package


def test_a_record_says_all_that_is_needed_and_is_json():
    record = json.loads(json.dumps(provenance()))
    assert set(record) == {"command", "commit", "date", "python", "versions", "hardware"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert re.search(r"\d+ cores", record["hardware"])
    assert record["versions"]["cartridges"]


def test_a_package_that_is_not_installed_has_no_version():
    assert package_version("no-such-package") is None


def test_a_clean_checkout_is_its_commit_whatever_is_measured_in_it(package):
    clean = commit_of(package)
    assert clean and re.fullmatch(r"[0-9a-f]{12}", clean)
    (package.parent / "results.json").write_text('{"a": 1}')
    (package.parent / "scratch.py").write_text("outside of the package")
    (package / "build").mkdir()
    (package / "build" / "made.py").write_text("ignored")
    assert commit_of(package) == clean


def test_states_of_changed_code_have_stamps_of_their_own(package):
    stamps = [commit_of(package)]
    for name, content in (
        ("train.py", b"lr = 2\n"),
        ("train.py", b"lr = 3 # \xff\n"),
        ("weights.safetensors", b"\0\2"),
        ("weights.safetensors", b"\0\3"),
        ("evals/new.py", b"a = 1\n"),
        ("evals/new.py", b"a = 2\n"),
    ):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_bytes(content)
        stamps.append(commit_of(package))
        assert re.fullmatch(rf"{stamps[0]}\+changes\.[0-9a-f]{{8}}", str(stamps[-1]))
        assert commit_of(package) == stamps[-1]
    assert len(set(stamps)) == len(stamps)
    (package / "evals" / "new.py").unlink()
    assert commit_of(package) == stamps[4]


def test_one_process_has_one_stamp(monkeypatch):
    before = commit()
    monkeypatch.setattr("cartridges.provenance.commit_of", lambda package: "edited while it runs")
    assert commit() == before == provenance()["commit"]


def test_outside_of_a_checkout_there_is_no_commit(tmp_path):
    assert commit_of(tmp_path / "cartridges") is None
