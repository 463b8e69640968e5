"""The documentation is true: its commands run, its links lead somewhere, and it names every command.

On every page a fence marked `bash` is run as it stands; anything that must not run here is marked otherwise. Lines that
start with `make` are only looked up, as make sets up an environment of its own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cartridges.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")


def bash_blocks(markdown: str) -> list[str]:
    return [body for language, body in FENCE.findall(markdown) if language == "bash"]


def make_lines(block: str) -> list[str]:
    return [line for line in block.splitlines() if line.startswith("make")]


def other_lines(block: str) -> str:
    return "\n".join(line for line in block.splitlines() if not line.startswith("make"))


def make_targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))


def broken_links(page: Path) -> list[str]:
    targets = [target.partition("#")[0] for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))]
    return [target for target in targets if target and "://" not in target and not (page.parent / target).exists()]


def run_block(block: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", block]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


README_BLOCKS = bash_blocks((ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_readme_shows_commands():
    assert README_BLOCKS


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_run(page, tmp_path):
    for block in bash_blocks(page.read_text(encoding="utf-8")):  # in order and in one folder, as a reader would
        result = run_block(other_lines(block), tmp_path)
        assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"


def test_readme_make_targets_exist():
    targets = make_targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    for line in (line for block in README_BLOCKS for line in make_lines(block)):
        assert set(line.partition("#")[0].split()[1:]) <= targets, f"{line!r} names no target of the Makefile"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_generated_parts_are_those_of_the_result_files():
    command = [sys.executable, str(ROOT / "docs" / "build.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_field_of_the_configuration_is_described():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert {"`num_conversations`", "`lr`", "`initialize.compact.keys`", "`kv_tokens_total`"} <= {row[0] for row in rows}
    assert [row for row in rows if len(row) < 2 or row[-1].startswith("None") or not row[-1].strip()] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command):
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert f"cartridges {command}" in text, f"no page names 'cartridges {command}'"


def test_the_judge_runs_only_bash(tmp_path):
    page = "```bash\nmake demo\necho a > b\n```\n```text\nnot this\n```\n```sh\nnor this\n```\n"
    (block,) = bash_blocks(page)
    assert make_lines(block) == ["make demo"]
    assert run_block(other_lines(block), tmp_path).returncode == 0
    assert (tmp_path / "b").read_text() == "a\n"


def test_the_judge_sees_a_command_that_fails(tmp_path):
    assert run_block("false\ntrue", tmp_path).returncode != 0


def test_the_judge_sees_a_broken_link(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](gone.md) [b](page.md#part) [c](https://example.org) [d](#here) ![e](gone.png 'title')\n")
    assert broken_links(page) == ["gone.md", "gone.png"]
