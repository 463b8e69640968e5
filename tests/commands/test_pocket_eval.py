"""`cartridges pocket eval` on a tiny random model: its output and its errors."""

import json
import subprocess
import sys

import pytest

from cartridges.pocket import evaluate as evaluation


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cartridges", "pocket", "eval", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def model(tmp_path, tiny_model, tiny_tokenizer):
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "no model at nowhere"),
        (["--split", "tset"], "unknown split 'tset'; did you mean 'test'"),
        (["--seed", "abc"], "abc"),
        (["--scale", "0"], "0"),
        (["--json", "no/folder/at/all.json"], "cannot write no/folder/at/all.json"),
        (["--json", "/"], "cannot write /"),
        (["--device", "gpu"], "gpu"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_the_table_and_the_json_are_written(tmp_path, model, monkeypatch, capsys):
    from cartridges.cli import main

    monkeypatch.setattr(
        evaluation,
        "generate",
        lambda engine, system, messages, **kwargs: ["I do not know."] * len(messages),
    )
    arguments = ["pocket", "eval", "--model", str(model), "--scale", "0.05", "--json", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "unanswerable: says so" in shown
    written = json.loads((tmp_path / "out.json").read_text())
    by_name = {line["name"]: line["mean"] for line in written["targets"]}
    cells = {(cell["kind"], cell["mean"]) for cell in written["cells"]}
    assert ("unknown", 1.0) in cells
    assert by_name["unanswerable: says so"] == 0
    assert by_name["multiple choice"] == 0
    assert written["split"] == "test"
    assert len(written["weights_sha256"]) == 64
