"""`cartridges pocket world`: what it prints, what it writes, and what it refuses."""

import json
import subprocess
import sys

import pytest

from cartridges import cli
from cartridges.pocket.families import FAMILIES, make_context
from cartridges.pocket.questions import DRAWS
from cartridges.questions import read_items


@pytest.fixture
def call(capsys):
    """The command in this process; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["pocket", "world", *map(str, arguments)])
        return stopped.value.code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("family", FAMILIES)
def test_it_prints_the_document_and_questions_of_every_kind(call, family):
    code, stdout, stderr = call("--family", family, "--seed", 3, "--size", 4)
    assert code == 0
    assert stdout.startswith(make_context(family, "test", 3, 1, 4).text + "\n\n[")
    missing = [kind for kind in DRAWS if f"\n[{kind}] " not in stdout]
    assert missing == [kind for kind in DRAWS if f"{kind} 0 of 1" in stderr]  # said, not dropped in silence
    assert len(missing) <= 3


def test_the_same_command_prints_the_same(call):
    assert call("--seed", 5, "--questions", 3) == call("--seed", 5, "--questions", 3)
    assert call("--seed", 5) != call("--seed", 6)


def test_questions_can_be_left_out(call):
    assert call("--questions", 0) == (0, make_context("ward", "test", 0, 1, 2).text + "\n", "")


def test_it_writes_documents_and_questions(call, tmp_path):
    out = tmp_path / "world"
    code, stdout, _ = call("--documents", 3, "--questions", 2, "--out", out)
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == ["documents", "questions.jsonl"]
    names = ["document-1.md", "document-2.md", "document-3.md"]
    assert sorted(path.name for path in (out / "documents").iterdir()) == names
    context = make_context("ward", "test", 0, 3, 2)
    texts = [(out / "documents" / name).read_text() for name in names]
    assert texts == [document.text + "\n" for document in context.documents]
    rows = [json.loads(line) for line in (out / "questions.jsonl").read_text().splitlines()]
    assert stdout == f"{out} holds 3 documents and {len(rows)} questions in questions.jsonl\n"
    assert len({row["question"] for row in rows if row["kind"] == "lookup"}) == 2
    for row in rows:
        assert set(row) == {"kind", "question", "answer", "gold", "match", "document"}
        if row["kind"] == "lookup":
            assert row["gold"][0] in row["answer"] and row["gold"][0] in context.text
            assert row["gold"][0] in texts[names.index(row["document"])]
    items = read_items(out / "questions.jsonl")
    assert [item.score(item.answer) for item in items if item.golds] == [1.0] * sum(bool(item.golds) for item in items)


def test_kinds_can_be_chosen(call, tmp_path):
    code, _, _ = call("--kinds", "lookup,count", "--out", tmp_path / "world")
    assert code == 0
    assert {item.kind for item in read_items(tmp_path / "world" / "questions.jsonl")} == {"lookup", "count"}
    code, _, stderr = call("--kinds", "lokup")
    assert code == 2 and "unknown kind of question 'lokup'; did you mean 'lookup'?" in stderr


def test_files_are_not_mixed(call, tmp_path):
    (tmp_path / "mine.txt").write_text("")
    code, _, stderr = call("--out", tmp_path)
    assert (code, stderr) == (2, f"error: {tmp_path} holds files already; give a new or empty folder\n")
    code, _, stderr = call("--out", tmp_path / "mine.txt")
    assert (code, stderr) == (2, f"error: given {tmp_path}/mine.txt, expected a folder; it is a file\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "wards"], "unknown family 'wards'; did you mean 'ward'?"),
        (["--split", "tset"], "unknown split 'tset'; did you mean 'test'?"),
        (["--seed", "x"], "'x' is not a valid integer"),
        (["--documents", "0"], "0 is not in the range 1<=x<=1000"),
        (["--size", "-3"], "-3 is not in the range 1<=x<=100"),
        (["--questions", "1e9"], "'1e9' is not a valid integer"),
        (["--documents", "1000", "--size", "100"], "ask for a smaller world"),
    ],
)
def test_nonsense_is_one_line(call, arguments, message):
    code, stdout, stderr = call(*arguments)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert message in stderr


def test_it_imports_no_torch():
    program = (
        "import sys\nfrom cartridges.cli import main\n"
        "try: main(['pocket', 'world'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
