"""Paths and KEY=VALUE in one list of arguments."""

from pathlib import Path

import pytest

from cartridges.commands.arguments import connected, read_key, split_overrides
from cartridges.errors import InputError


def test_what_has_an_equals_sign_is_an_override():
    given = ["docs", "lr=1e-2", "more/notes.md", "chunk.kind=tokens", "text=a=b"]
    paths, overrides = split_overrides(given)
    assert paths == [Path("docs"), Path("more/notes.md")]
    assert overrides == ["lr=1e-2", "chunk.kind=tokens", "text=a=b"]


def test_a_path_that_is_there_is_a_path(tmp_path):
    odd = tmp_path / "a=b.txt"
    odd.write_text("")
    assert split_overrides([str(odd), "c=d"]) == ([odd], ["c=d"])


def test_a_path_that_is_not_there_is_left_to_the_reader():
    assert split_overrides(["nowhere"]) == ([Path("nowhere")], [])


def test_no_path_is_told():
    with pytest.raises(InputError, match=r"given 'lr=1 slots=\[8\]', expected at least one path beside KEY=VALUE"):
        split_overrides(["lr=1", "slots=[8]"])


def test_a_value_may_be_long():
    long = "description=" + "a word " * 100
    assert split_overrides(["docs", long]) == ([Path("docs")], [long])


def test_an_empty_path_is_told():
    with pytest.raises(InputError):
        split_overrides([""])


def test_no_server_is_no_client():
    assert connected([], "vllm", "", None, "pocket") is None


def test_a_key_is_the_first_line_of_its_file(tmp_path):
    path = tmp_path / "key"
    path.write_text("secret\nanother\n")
    assert (read_key(path), read_key(None)) == ("secret", "")
    path.write_text("\n")
    with pytest.raises(InputError, match="is empty, expected a key in its first line"):
        read_key(path)
