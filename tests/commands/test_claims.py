"""The command `claims`: refusals in one line before any work."""

import pytest

from cartridges.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "capcity"], "unknown claim 'capcity'; did you mean 'capacity'?"),
        (["--preset", "qick"], "unknown preset 'qick'; did you mean 'quick'?"),
        (["stepps=3"], "steps"),
        (["--out", "file"], "expected a folder; it is a file"),
    ],
)
def test_refusals(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main(["claims", *arguments])
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1 and message in told
    assert not (tmp_path / "runs").exists()
