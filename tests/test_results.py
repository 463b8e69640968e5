"""Results: written and read, and rows found by name."""

import dataclasses

import pytest

from cartridges.errors import FormatError, InputError
from cartridges.results import MethodResult, Reply, Results


def row(method, num_slots=0):
    return MethodResult(method, method, num_slots, 10, 0.5, (0.2, 0.8), 0.1, 0.9, 1000, 12, 3.5, 0.25)


@pytest.fixture
def results():
    unscored = dataclasses.replace(row("no_context"), accuracy=None, ci95=None)
    rows = [row("full_context"), unscored, row("cartridge-128", 128), row("cartridge-64", 64)]
    replies = [Reply("q", "a", "lookup", {"full_context": "a"}, {"full_context": 1.0})]
    return Results(rows, "full_context", [row("no_context")], replies, ["a note"], {"num_tokens": 5}, {"commit": "x"})


def test_what_is_written_is_read(results, tmp_path):
    results.save(tmp_path / "r.json")
    assert Results.load(tmp_path / "r.json") == results


def test_names_that_are_no_unicode_are_written_and_read(results, tmp_path):
    results.provenance = {"command": "cartridges eval docs\udcff", "path": "ä\\\udcff"}
    results.replies.append(Reply("q", "\ud83d", "lookup", {}))
    results.save(tmp_path / "r.json")
    assert "ä" in (tmp_path / "r.json").read_text(encoding="utf-8")
    assert Results.load(tmp_path / "r.json") == results


def test_rows_are_found(results):
    assert results.row("cartridge-64").num_slots == 64
    assert [found.num_slots for found in results.cartridges] == [64, 128]
    with pytest.raises(InputError, match="no method 'lora' was measured; there are: full_context, no_context"):
        results.row("lora")


def test_no_results_are_told(tmp_path):
    with pytest.raises(InputError, match="measure with: cartridges eval"):
        Results.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize("content", ["{", "[" * 200_000, "[]", '{"methods": 3}', '{"methods": [{"method": "x"}]}'])
def test_damage_is_told(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(FormatError, match=r"cannot be read .*; measure again"):
        Results.load(tmp_path / "r.json")
