from random import Random

import pytest

from cartridges.pocket.names import Names
from cartridges.pocket.render import LAYOUTS, Section, capitalized, grouped, joined, render, sentence
from cartridges.pocket.world import Fact, Relation

ROOM = Relation("room", Names.code, said=("{s} stays in room {v}.",))
DRUG = Relation("drug", Names.drug, plural="drugs")
DOSE = Relation("dose", Names.number)
WORD = Relation("word", Names.word, joint="for")

KADI, BOFU = "Kadi Bofu", "Bofu"
FACTS = (
    Fact(KADI, ROOM, "B-417"),
    Fact(KADI, DRUG, "zekax"),
    Fact(KADI, DRUG, "vopol"),
    Fact("vopol", DOSE, "250 mg"),
)
SECTION = Section(KADI, FACTS, short=BOFU)


def drawn(layout: str | None = None, count: int = 40) -> list[str]:
    return [render(Random(seed), "Ward", [SECTION], layout) for seed in range(count)]


def test_joined():
    assert [joined(list("abc")[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]


def test_capitalized_leaves_the_rest():
    assert [capitalized(text) for text in ("", "iPad of Bo", "x")] == ["", "IPad of Bo", "X"]


def test_facts_that_differ_in_the_value_alone_are_grouped():
    assert [[fact.value for fact in facts] for facts in grouped(FACTS)] == [["B-417"], ["zekax", "vopol"], ["250 mg"]]


def test_sentences_take_every_form_of_the_relation():
    forms = {sentence(Random(seed), [FACTS[0]], BOFU) for seed in range(30)}
    assert forms == {"Bofu stays in room B-417.", "The room of Bofu is B-417."}


def test_sentences_use_the_plural_and_the_joint():
    assert sentence(Random(0), list(FACTS[1:3]), KADI) == "The drugs of Kadi Bofu are zekax and vopol."
    assert sentence(Random(0), [Fact("dog", WORD, "fadix")], "dog") == "The word for dog is fadix."


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_states_every_value(layout):
    for text in drawn(layout):
        assert [fact.value for fact in FACTS if fact.value not in text] == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_introduces_the_subject_in_full(layout):
    for text in drawn(layout):
        assert text.find(KADI) == text.find(BOFU) - len("Kadi ") >= 0


@pytest.mark.parametrize("layout", [None, *LAYOUTS])
def test_the_title_stands_on_top(layout):
    assert {text.split("\n\n")[0] for text in drawn(layout)} == {"Ward", "# Ward"}


def test_a_list_has_a_line_for_each_group_and_names_other_subjects():
    assert "Kadi Bofu:\nRoom: B-417\nDrugs: zekax, vopol\nDose of vopol: 250 mg" in "\n".join(drawn("list"))


def test_a_table_has_a_row_for_each_group_and_names_other_subjects():
    rows = "| What | Value |\n|---|---|\n| Room | B-417 |\n| Drugs | zekax, vopol |\n| Dose of vopol | 250 mg |"
    assert all(text.endswith(rows) for text in drawn("table"))


def test_shuffled_sentences_use_no_short_name():
    assert all(text.count(BOFU) == text.count(KADI) == 2 for text in drawn("shuffled"))


def test_prose_uses_the_short_name_now_and_then():
    shortened = [text.count(BOFU) > text.count(KADI) for text in drawn("prose")]
    assert 0 < sum(shortened) < len(shortened)


def test_every_layout_is_drawn():
    texts = drawn(count=100)
    assert any("|---|" in text for text in texts)
    assert any("Room: B-417" in text for text in texts)
    assert any("## Kadi Bofu" in text for text in texts)
    assert any(text.startswith("Ward\n\nThe dose of vopol") for text in texts)  # shuffled
