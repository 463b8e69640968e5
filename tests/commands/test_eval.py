"""`cartridges eval` on a tiny random model: the table, the JSON, and what it refuses."""

import json
import shutil
import subprocess
import sys

import pytest

from cartridges.cartridge import TENSORS, Cartridge
from cartridges.engine.engine import Engine
from cartridges.evaluation import EvaluateConfig, evaluate
from cartridges.find import SOURCE
from cartridges.initialization import InitializeConfig, initialize
from cartridges.questions import Item, read_items, write_items
from cartridges.results import Results

COMMAND = "eval"

ITEMS = [
    Item("How many beds has the ward?", "nine", ("nine",), document="ward.txt"),
    Item("To how many towns?", "seven", ("seven",), document="firm.txt"),
]


@pytest.fixture(scope="module")
def questions(place):
    write_items(place.folder / "questions.jsonl", ITEMS)
    return place.folder / "questions.jsonl"


@pytest.fixture(autouse=True)
def short_replies(monkeypatch):
    """A random model never stops by itself."""
    monkeypatch.setattr(EvaluateConfig, "resolve", lambda *_: EvaluateConfig(max_new_tokens=6))


def test_it_shows_and_writes_what_evaluate_finds(call, place, questions, tmp_path):
    out = tmp_path / "results.json"
    code, stdout, _ = call(place.cartridge, "--questions", questions, "--docs", place.docs, "--json", out)
    assert code == 0
    found, slots = Results.load(out), Cartridge.load(place.cartridge)
    expected = evaluate(Engine(place.model), place.corpus, read_items(questions), {"30": slots})
    assert found.replies == expected.replies
    assert [(row.method, row.kl_per_token, row.accuracy, row.kv_bytes) for row in found.methods] == [
        (row.method, row.kl_per_token, row.accuracy, row.kv_bytes) for row in expected.methods
    ]
    for row in found.methods:
        assert row.label.split(",")[0] in stdout
    assert json.loads(out.read_text())["about"]["model_id"] == str(place.paths[0])


def test_the_documents_of_the_build_are_the_default(call, refused, place, questions, tmp_path):
    shutil.copytree(place.cartridge, tmp_path / "cartridge")
    assert "nothing tells which documents" in refused(tmp_path, "--questions", questions)
    (tmp_path / SOURCE).write_text(json.dumps({"documents": [str(place.docs)]}))
    assert call(tmp_path, "--questions", questions)[0] == 0


def test_documents_that_have_changed_since_are_told(refused, place, questions, tmp_path):
    shutil.copytree(place.cartridge, tmp_path / "cartridge")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "ward.txt").write_text("Another ward. " * 20)
    (tmp_path / SOURCE).write_text(json.dumps({"documents": [str(tmp_path / "docs")]}))
    assert "have changed since; build anew, or name documents with --docs" in refused(
        tmp_path, "--questions", questions
    )


def test_several_cartridges_are_compared(call, place, questions, tmp_path):
    small = initialize(place.model, place.corpus, 20, InitializeConfig())
    small.save(tmp_path / "small")
    shutil.copytree(place.cartridge, tmp_path / "twin")
    out = tmp_path / "results.json"
    options = ("--questions", questions, "--docs", place.docs, "--json", out)
    call(place.cartridge, tmp_path / "small", *options)
    assert [row.method for row in Results.load(out).cartridges] == ["cartridge-20", "cartridge-30"]
    call(place.cartridge, tmp_path / "twin", *options)  # of one size, so they are told apart by their folders
    rows = Results.load(out).cartridges
    assert [row.method for row in rows] == [f"cartridge-{place.cartridge}", f"cartridge-{tmp_path / 'twin'}"]
    assert rows[0].kl_per_token == rows[1].kl_per_token


def test_notes_are_told(call, place, questions, tmp_path):
    (tmp_path / "ward.txt").write_text("Another ward. " * 20)
    _, stdout, _ = call(place.cartridge, "--questions", questions, "--docs", tmp_path)
    assert "note: the untrained form of 30 cannot be made anew from this corpus, and is left out" in stdout


def test_another_model_is_refused(refused, place, questions):
    options = ("--questions", questions, "--docs", place.docs, "--model", place.paths[1])
    assert "other weights of the same shape; load it with its own model" in refused(place.cartridge, *options)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ('{"question": 3}', "expected an object with a text as 'question'"),
        ('{"question": "q", "match": "exat"}', "unknown match 'exat'; did you mean 'exact'?"),
        ("", "holds no questions"),
    ],
)
def test_damaged_questions_are_told(refused, place, tmp_path, line, message):
    (tmp_path / "q.jsonl").write_text(line)
    assert message in refused(place.cartridge, "--questions", tmp_path / "q.jsonl", "--docs", place.docs)


def test_wrong_input_is_one_line(refused, place, questions, tmp_path):
    asked = ("--questions", questions)
    given = (*asked, "--docs", place.docs)
    assert "cannot read the questions in" in refused(place.cartridge, "--questions", tmp_path / "nowhere")
    assert "Missing option '--questions'" in refused(place.cartridge)
    assert "Missing argument 'CARTRIDGES...'" in refused(*asked)
    assert "nowhere is not there; expected a cartridge's folder" in refused(tmp_path / "nowhere", *given)
    assert "holds no cartridge" in refused(tmp_path, *given)
    assert "no file in it" in refused(place.cartridge, *asked, "--docs", tmp_path)
    assert "expected a file or folder of documents" in refused(place.cartridge, *asked, "--docs", tmp_path / "no")
    assert "no model at ./nowhere" in refused(place.cartridge, *given, "--model", "./nowhere")
    assert "'abc' is not a valid integer" in refused(place.cartridge, *given, "--slots", "abc")
    for out in (tmp_path, tmp_path / "no" / "r.json"):
        assert f"cannot write {out}: give a file in a folder that exists" in refused(
            place.cartridge, *given, "--json", out
        )


def test_a_question_beyond_the_window_is_told(call, place, tmp_path):
    write_items(tmp_path / "q.jsonl", [Item("Why? " * 1000, "")])
    code, _, stderr = call(place.cartridge, "--questions", tmp_path / "q.jsonl", "--docs", place.docs)
    assert code == 2 and "expected at most 1024" in stderr.splitlines()[-1]


def test_a_damaged_cartridge_is_told(refused, place, questions, tmp_path):
    copy = shutil.copytree(place.cartridge, tmp_path / "cartridge")
    raw = bytearray((copy / TENSORS).read_bytes())
    options = ("--questions", questions, "--docs", place.docs)
    (copy / TENSORS).write_bytes(raw[:-7])
    assert f"{copy / TENSORS} is damaged" in refused(copy, *options)
    raw[-1] ^= 1
    (copy / TENSORS).write_bytes(raw)
    assert "do not belong together (another digest)" in refused(copy, *options)


def test_help_imports_no_torch():
    program = (
        "import sys\nfrom cartridges.cli import main\n"
        "try: main(['eval', '--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: cartridges eval" in done.stdout
