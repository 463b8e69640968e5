import pytest

from cartridges.passages import MAX_LINE, MAX_PART, passages
from cartridges.pocket.families import FAMILIES, make_context

SENTENCE = "The old road came back to the quiet garden in spring."


def test_each_line_is_a_passage_below_its_heading():
    text = "# Ward\n\nintro\n\n## Zubis\n* Room: N-850\n* Allergy: pafin\n"
    assert passages(text) == ["# Ward\nintro", "## Zubis\n* Room: N-850", "## Zubis\n* Allergy: pafin"]


def test_a_line_that_ends_in_a_colon_is_a_heading():
    assert passages("Zubis:\nRoom: N-850") == ["Zubis:\nRoom: N-850"]


def test_rules_and_empty_lines_are_none():
    assert passages("| What | Value |\n|---|---|\n\n***\n| Room | N-850 |") == ["| What | Value |", "| Room | N-850 |"]


def test_long_lines_are_cut_into_sentences_and_short_ones_stay_whole():
    long = " ".join([SENTENCE] * 5)
    assert len(long) > MAX_LINE
    assert passages(long) == [SENTENCE] * 5
    assert passages(f"{SENTENCE} {SENTENCE}") == [f"{SENTENCE} {SENTENCE}"]


def test_short_neighbours_are_joined_below_one_heading_only():
    text = "# A\none\ntwo\nthree\n# B\nfour"
    assert passages(text, min_len=6) == ["# A\none\ntwo", "# A\nthree", "# B\nfour"]


@pytest.mark.parametrize("text", ["# only a heading", "?!", ""])
def test_a_text_without_one_is_one(text):
    assert passages(text) == [text]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_fact_of_the_world_stands_in_a_passage(family):
    for seed in range(5):
        context = make_context(family, "validation", seed)
        assert all(any(fact.value in passage for passage in context.passages) for fact in context.facts)


@pytest.mark.parametrize("min_len", [1, 40, 10_000])
def test_nothing_but_headings_is_left_out(min_len):
    text = "\n".join(f"line {number}" for number in range(50)) + "\n" + " ".join([SENTENCE] * 9)
    found = passages(text, min_len)
    assert " ".join(found).split() == text.split()
    assert all(len(passage) >= min_len for passage in found[:-1])


def test_what_a_colon_opens_ends_at_an_empty_line():
    text = "# Ward rules\n\nVisitors must:\n\n- ring\n- wait\n\nThe ward opens at nine."
    assert passages(text) == [
        "Visitors must:\n- ring",
        "Visitors must:\n- wait",
        "# Ward rules\nThe ward opens at nine.",
    ]


def test_of_many_headings_the_last_two_are_kept():
    licence = "\n".join(f"# line {number} of a licence" for number in range(400))
    assert passages(f"{licence}\nx = 1\ny = 2") == [
        f"# line 398 of a licence\n# line 399 of a licence\n{line}" for line in ("x = 1", "y = 2")
    ]


@pytest.mark.parametrize("line", ["[" + '{"a": 1}, ' * 900 + "]", "x" * 9000, "病室是北八五零。" * 500])
def test_lines_without_sentences_are_cut_all_the_same(line):
    found = passages(line)
    assert max(map(len, found)) <= MAX_PART
    assert "".join("".join(found).split()) == "".join(line.split())


def test_headings_right_below_each_other_stay_together():
    text = "# a title\n\n# Author: Zege.\ndef f():\n    return 4"
    assert passages(text) == ["# Author: Zege.\ndef f():\nreturn 4"]
