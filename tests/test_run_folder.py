"""Files of a run: whole or not at all, and readable whatever the names in them are."""

import json

import pytest

from cartridges.run_folder import json_bytes, write_json, write_whole


def test_json_keeps_characters_and_takes_names_that_are_no_text(tmp_path):
    content = {"name": "caf\u00e9", "path": "docs\udcff"}
    assert json_bytes(content, indent=None) == '{"name": "caf\u00e9", "path": "docs\\udcff"}\n'.encode()
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content


def test_what_cannot_be_written_leaves_the_old_file(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", b"old")
    with monkeypatch.context() as patched:
        patched.setattr("cartridges.run_folder.os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(OSError, match=r"No space left on device: .*a"):
            write_whole(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]
