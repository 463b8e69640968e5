"""Questions of the world as items: the canonical answer is right, others are wrong, and the document is right."""

import pytest

from cartridges.pocket.families import FAMILIES, make_context
from cartridges.pocket.items import FREE, item_of
from cartridges.pocket.questions import DRAWS, Question, draw
from cartridges.rng import rng_of

SCORED = [kind for kind in DRAWS if kind not in FREE]


def questions(family, kind, num_wanted=12, num_documents=3):
    """Pairs of a question and its context, over several worlds; few or none where a family has no such kind."""
    found = []
    for seed in range(num_wanted):
        context = make_context(family, "test", seed, num_documents, 2)
        question = draw(rng_of("items", family, kind, seed), context, kind)
        found += [(question, context)] if question else []
    return found


@pytest.mark.parametrize("kind", SCORED)
def test_the_answer_is_right_and_others_are_wrong(kind):
    pairs = [pair for family in FAMILIES for pair in questions(family, kind)]
    assert len(pairs) >= 10
    for question, _ in pairs:
        item = item_of(question)
        assert (item.question, item.answer, item.kind) == (question.text, question.answer, kind)
        assert item.score(question.answer) == 1.0
        for wrong in ("", "I do not know.", "The room is B-417.", question.text):
            assert item.score(wrong) == 0.0


@pytest.mark.parametrize("kind", SCORED)
def test_the_answer_to_another_question_is_wrong(kind):
    pairs = questions("ward", kind)
    answers = {question.answer for question, _ in pairs}
    for question, _ in pairs:
        others = [other for other in answers if other.split(" is ")[-1] != question.answer.split(" is ")[-1]]
        assert [item_of(question).score(other) for other in others] == [0.0] * len(others)


@pytest.mark.parametrize("kind", FREE)
def test_free_text_is_not_scored(kind):
    item = item_of(Question(kind, "?", "a rhyme", ("a", "rhyme")))
    assert item.golds == () and item.score("a rhyme") is None


def test_a_choice_is_its_value_with_its_letter():
    (question, _), *_ = questions("ward", "multiple_choice")
    value, letter = question.needs[0].value, question.gold[0]
    other = "B" if letter == "A" else "A"
    item = item_of(question)
    assert item.score(f"It is {value} ({letter}).") == 1.0
    assert [item.score(reply) for reply in (f"It is {value} ({other}).", f"It is {value}.", letter)] == [0.0] * 3


@pytest.mark.parametrize(("kind", "other"), [("json", "yaml"), ("yaml", "json")])
def test_a_record_is_right_in_either_notation_and_wrong_with_a_key_less(kind, other):
    for question, _ in questions("firm", kind):
        twin = Question(other, question.text, "", question.gold, question.needs)
        less = Question(kind, question.text, "", question.gold[1:], question.needs)
        assert item_of(twin).score(question.answer) == 1.0
        assert item_of(less).score(question.answer) == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_document_is_the_one_that_holds_the_answer(family):
    paths = ["a.md", "b.md", "c.md"]
    found = [(item_of(q, c, paths), q, c) for q, c in questions(family, "lookup")]
    assert {item.document for item, _, _ in found} - {""} != set()
    for item, question, context in found:
        holding = [p for p, d in zip(paths, context.documents, strict=True) if question.needs[0] in d.facts]
        assert item.document == (holding[0] if len(holding) == 1 else "")
        assert question.gold[0] in context.documents[paths.index(item.document or holding[0])].text


def test_no_document_is_named_where_none_alone_answers():
    contexts = [make_context("ward", "test", seed, 2, 2) for seed in range(3)]
    for context in contexts:
        first, second = context.documents
        facts = (first.facts[0], second.facts[0])
        assert item_of(Question("two_hop", "?", "a", ("a",), facts), context, ["a", "b"]).document == ""
        unanswerable = draw(rng_of("unanswerable"), context, "unanswerable")
        assert unanswerable and item_of(unanswerable, context, ["a", "b"]).document == ""


def test_without_paths_no_document_is_named():
    (question, context), *_ = questions("ward", "lookup")
    assert item_of(question).document == item_of(question, context).document == ""
    with pytest.raises(ValueError, match="longer"):
        item_of(question, context, ["a.md"])
