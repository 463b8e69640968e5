"""The table holds the numbers that were given, and says why others are missing."""

import io
import math

import pytest
from rich.console import Console

from cartridges.errors import InputError
from cartridges.report import console_table, results_table
from cartridges.report_table import human_bytes, seconds_text
from tests.report_samples import BASIC, BYTES_PER_SLOT, NUM, changed, parsed_table, some_results, wilson, words


def test_the_table_holds_the_numbers_that_were_given():
    results = some_results()
    rows = parsed_table(results_table(results))
    assert [row["method"] for row in rows] == ["full context (reference)", *(r.label for r in results.methods[1:])]
    for shown, right in zip(rows, BASIC.values(), strict=True):
        low, high = wilson(right, NUM)
        assert shown["accuracy (95% interval)"] == f"{right / NUM * 100:.1f}% ({low * 100:.1f}–{high * 100:.1f})"
    ours = rows[-1]
    assert ours["KL per token"] == "0.214"
    assert ours["top-1 agreement"] == "90.8%"
    assert ours["KV bytes"] == f"{64 * BYTES_PER_SLOT / 1000:.1f} kB"
    assert ours["against the reference"] == f"{2000 / 64:.0f}x fewer"
    assert ours["build seconds"] == "100"
    assert ours["seconds per question"] == "0.400"
    assert rows[0]["prompt tokens"] == "2,000"
    assert rows[1]["against the reference"] == ""  # no bytes at all: no ratio


def test_missing_values_are_dashes_with_a_reason():
    missing = {"accuracy": None, "ci95": None, "kl_per_token": None, "top1_agreement": None}
    results = changed(some_results(), "cartridge-64", **missing, build_s=0.0, question_s=0.0)
    text = results_table(results)
    ours = parsed_table(text)[-1]
    for column in ("accuracy (95% interval)", "KL per token", "top-1 agreement", "build seconds"):
        assert ours[column] == "–"
    assert ours["seconds per question"] == "–"
    assert "for accuracy in some rows: no known answers" in text
    assert "for KL or agreement: no next-token distributions were compared" in text
    assert "for build seconds: what making the cartridge took was not recorded" in text
    assert "for seconds per question: not timed" in text
    assert "not timed" not in results_table(some_results())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_named_as_an_error(value):
    results = changed(some_results(), "cartridge-64", kl_per_token=value, accuracy=value)
    text = results_table(results)
    assert "nan" not in text.lower().replace("finance", "") and "inf%" not in text
    assert "infinite or no number, which is an error: cartridge-64" in text


def test_a_missing_reference_is_told():
    with pytest.raises(InputError, match="no method 'oracle' was measured; there are: full_context, no_context"):
        results_table(some_results(reference="oracle"))


def test_more_bytes_than_the_reference_are_told():
    results = changed(some_results(), "cartridge-64", kv_bytes=5000 * BYTES_PER_SLOT)
    assert parsed_table(results_table(results))[-1]["against the reference"] == "2.5x more"
    assert "with 2.5x more bytes" in words(results)


@pytest.mark.parametrize("width", [100, 80])
def test_the_terminal_table_fits_whole(width):
    long = changed(some_results(), "cartridge-64", label="cartridge [red]of[/red] a very long name indeed, " * 3)
    big = changed(long, "full_context", kv_bytes=12_345_678, prompt_tokens=12_345, question_s=1_234.0)
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(console_table(big))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    told = " ".join(lines)
    for part in (
        "85.0%",
        "(70.9–92.9)",
        "12,345",
        "1,234",
        "90.8%",
        "12.3 MB",
        "377x fewer",
        "[red]of[/red",
        "s/query",
    ):
        assert part in told
    assert "…" not in told


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_499, "999 kB"), (999_999, "1.00 MB"), (2_048_000, "2.05 MB")],
)
def test_bytes_for_people(num_bytes, text):
    assert human_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (0.0001, "<0.001"), (0.25, "0.250"), (9.996, "10.0"), (1234.4, "1,234"), (None, "–")],
)
def test_seconds_for_people(seconds, text):
    assert seconds_text(seconds) == text
