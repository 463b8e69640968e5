"""The command `bench`: a table of methods on a task, and refusals in one line."""

import json

import pytest

from cartridges.cli import main

SMALL = ["task.num_tokens=250", "task.num_each=3", "train.max_steps=2", "synthesize.num_conversations=64"]


def told_by(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    return stopped.value.code, capsys.readouterr()


def test_methods_are_compared_and_a_second_call_asks_nothing(tmp_path, capsys):
    out = tmp_path / "bench"
    command = ["pocket", "--methods", "no_context,document,cartridge,lora", "--slots", "12", "--out", str(out), *SMALL]
    code, told = told_by(capsys, *command)
    assert code == 0, told.err
    results = json.loads((out / "results.json").read_text())
    assert [row["method"] for row in results["rows"]] == ["no_context", "document", "cartridge"]
    assert results["provenance"]["versions"]["torch"] and "note: lora: given" in told.out
    before = (out / "answers" / "cartridge.jsonl").read_bytes()
    assert told_by(capsys, *command)[0] == 0
    assert (out / "answers" / "cartridge.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["longhelth"], "unknown task 'longhelth'; did you mean 'longhealth'?"),
        (["pocket", "--methods", "bm52"], "unknown method 'bm52'; did you mean 'bm25'?"),
        (["pocket", "--methods", "bm25,bm25"], "given the method bm25 twice"),
        (["pocket", "task.famly=ward"], "unknown option 'famly'; did you mean 'family'?"),
        (["longhealth", "task.path=gone.json"], "expected a file; there is none there"),
        (["longhealth"], "the task longhealth needs the option path"),
        (["pocket", "task.kinds=[summary]"], "unknown kind of question 'summary'"),
    ],
)
def test_refusals(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, told = told_by(capsys, *arguments)
    assert code == 2 and told.err.startswith("error: ") and message in told.err and told.err.count("\n") == 1
