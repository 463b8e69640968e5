"""The rules that tell right replies from wrong ones."""

import random

import pytest
import sacrebleu

from cartridges.pocket.families import FAMILIES, make_context
from cartridges.pocket.names import Names
from cartridges.pocket.questions import DRAWS, NOT_KNOWN, NOT_TOLD, Question, draw
from cartridges.pocket.scoring import final_value, score
from cartridges.pocket.world import Fact, Relation


def questions(kind: str, num: int = 40) -> list[Question]:
    found = []
    for index in range(num):
        context = make_context(sorted(FAMILIES)[index % len(FAMILIES)], "validation", f"scoring-{index}")
        if question := draw(random.Random(index), context, kind):
            found.append(question)
    return found


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_the_canonical_answer_is_right_and_that_to_another_question_is_wrong(kind):
    asked = questions(kind)
    assert len(asked) >= 8
    assert all(score(question, question.answer) == pytest.approx(1) for question in asked)
    for question, other in zip(asked, asked[1:] + asked[:1], strict=True):
        if question.gold != other.gold:
            assert score(question, other.answer) < 0.9


@pytest.mark.parametrize("kind", sorted(DRAWS))
@pytest.mark.parametrize(
    "reply", ["", "is", "\n", "[]", "null", "{", "- - -", "a: b: c", "\ud800".encode("utf-8", "replace").decode()]
)
def test_no_reply_breaks_the_scoring(kind, reply):
    assert all(score(question, reply) < 0.5 for question in questions(kind, 10))


def test_a_value_that_only_ends_like_the_right_one_is_wrong():
    question = Question("lookup", "?", "", ("40 mg",))
    assert score(question, "The dose is 40 mg.") == 1
    assert score(question, "The dose is 140 mg.") == 0
    assert score(question, "The dose is 40 mg and the drug is dofaol.") == 0


def test_a_choice_is_one_letter_in_brackets_behind_its_value():
    fact = Fact("Vivis Tevax", Relation("room", Names.code), "E-674")
    question = Question("multiple_choice", "?", "", ("C",), (fact,))
    assert score(question, "The room of Vivis Tevax is E-674 (C).") == 1
    assert score(question, "The room of Vivis Tevax is E-675 (C).") == 0
    assert score(question, "Either E-674 (A) or E-674 (C)") == 0
    assert score(question, "The room of Vivis Tevax is E-674 (A).") == 0
    assert score(question, "C") == 0


def test_final_value_is_what_the_last_is_leads_to():
    assert final_value("The doctor of X is Y. The office of Y is E-674.") == "E-674."
    assert final_value("This analysis") == "This analysis"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"room": "B-417", "dose": "272"}', 1),
        ('{"dose": 272, "room": "B-417"}', 1),
        ('{"room": "B-417"}', 0),
        ('{"room": "B-417", "dose": "272", "drug": "dofaol"}', 0),
        ('{"room": "B-417", "dose": "273"}', 0),
        ("room: B-417\ndose: 272", 0),
    ],
)
def test_json_has_to_parse_and_to_hold_just_the_right_pairs(reply, expected):
    question = Question("json", "?", "", ('["room", "B-417"]', '["dose", "272"]'))
    assert score(question, reply) == expected


def test_yaml_numbers_count_as_their_text():
    question = Question("yaml", "?", "", ('["room", "B-417"]', '["result", "272"]'))
    assert score(question, "room: B-417\nresult: 272") == 1
    assert score(question, "room: B-417\nresult: 27") == 0


def test_a_summary_may_leave_out_but_not_make_up():
    question = Question("summary", "?", "", ("Tarin Vok", "room B-417", "drug dofaol", "height 180 cm", "allergy zeni"))
    assert score(question, "Tarin Vok: drug dofaol; room B-417; allergy zeni.") == 1
    assert score(question, "Tarin Vok: drug dofaol; room B-417.") == 0
    assert score(question, "Tarin Vok: drug dofaol; room B-417; allergy zeno.") == 0
    assert score(question, "Belko Zun: drug dofaol; room B-417; allergy zeni.") == 0
    assert score(question, "Tarin Vok: drug dofaol; drug dofaol; drug dofaol.") == 0


def test_abstaining_is_about_what_was_asked():
    question = Question("unanswerable", "?", f"The room of Vivis Tevax is {NOT_TOLD}.", (NOT_TOLD,))
    assert score(question, f"the room of Vivis Tevax is {NOT_TOLD}") == 1
    assert score(question, f"The room of Kudi Zikax is {NOT_TOLD}.") == 0
    assert score(question, NOT_KNOWN) == 0
    assert score(Question("unknown", "?", NOT_KNOWN, (NOT_KNOWN,)), NOT_KNOWN.lower()) == 1


def test_chrf_is_sacrebleus():
    question = Question("translation", "?", "", ("zuvi kapoge mihon",))
    assert score(question, "The sentence is zuvi kapoge mihon.") == pytest.approx(1)
    expected = sacrebleu.sentence_chrf("zuvi kapogi mihon", ["zuvi kapoge mihon"]).score / 100
    assert 0.5 < expected < 0.9
    assert score(question, "The sentence is zuvi kapogi mihon.") == pytest.approx(expected)
