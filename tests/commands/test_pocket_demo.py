"""`cartridges pocket demo` with the bundled weights."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cartridges", "pocket", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_readme_shows_what_it_prints():
    """The document and the questions to the letter; a reply may differ by a token on another processor's bf16."""
    done = run()
    assert done.returncode == 0, done.stderr
    shown = (ROOT / "docs" / "results" / "pocket_demo.txt").read_text(encoding="utf-8")
    asked = [line for line in shown.split("And it asks")[0].splitlines() if not line.startswith(" ") and "?" in line]
    assert len(asked) >= 5
    assert done.stdout.split("╰")[0] == shown.split("╰")[0]
    assert [line for line in asked if line not in done.stdout.splitlines()] == []


def test_it_answers_questions_about_a_document_of_the_test_split():
    done = run("--seed", "11")
    assert done.returncode == 0, done.stderr
    assert "a document of the test split" in done.stdout
    assert done.stdout.count("(right)") >= 4


def test_a_question_of_ones_own_about_something_unheard_of():
    done = run("--ask", "What is the room of Zaza Zuzu?")
    assert done.returncode == 0, done.stderr
    assert "The room of Zaza Zuzu is not told in the text." in done.stdout


def test_an_unknown_family_is_one_line():
    done = run("--family", "wards")
    assert done.returncode == 2
    assert (
        done.stderr == "error: unknown family 'wards'; did you mean 'ward'? known: code, firm, haystack, tongue, ward\n"
    )
