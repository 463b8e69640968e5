import re
from collections.abc import Iterator
from random import Random

import pytest

from cartridges.pocket.families import FAMILIES, make_context
from cartridges.pocket.names import Names
from cartridges.pocket.questions import DRAWS, Question, draw
from cartridges.pocket.understand import understand
from cartridges.pocket.world import Context, Document, Fact, Relation
from cartridges.rng import rng_of

ANSWERABLE = [kind for kind in DRAWS if kind != "unanswerable"]
STRANGER = "Zuzu Xax"

DRUG = Relation("drug", Names.drug, asked=("What does {s} take?",), asked_back=("Who takes {v}?",), plural="drugs")
HEIGHT = Relation("height", Names.number, is_number=True)
ROOM = Relation("room", Names.code)
DOCTOR = Relation("doctor", Names.person)
FACTS = (
    Fact("Kadi Bofu", ROOM, "B-417"),
    Fact("Kadi Bofu", DRUG, "zekax"),
    Fact("Kadi Bofu", DRUG, "vopol"),
    Fact("Kadi Bofu", HEIGHT, "120 cm"),
    Fact("Kadi Bofu", DOCTOR, "Mevi Gadu"),
    Fact("Pez Hokil", DOCTOR, "Mevi Gadu"),
    Fact("Pez Hokil", DRUG, "vopol"),
    Fact("Pez Hokil", HEIGHT, "180 cm"),
    Fact("Dab Fozel", HEIGHT, "120 cm"),
    Fact("Mevi Gadu", ROOM, "A-100"),
)


@pytest.fixture
def ward() -> Context:
    kinds = dict.fromkeys(("Kadi Bofu", "Pez Hokil", "Dab Fozel"), "patient") | {"Mevi Gadu": "doctor"}
    return Context([Document("ward", "", "", FACTS, kinds)], Names(Random(0), "train"))


def drawn(kind: str, num_documents: int = 1, count: int = 4) -> Iterator[tuple[Context, Question]]:
    for family in FAMILIES:
        for seed in range(12):
            context = make_context(family, "train", seed, num_documents)
            rng = rng_of("understand", family, kind, seed)
            for _ in range(count):
                if question := draw(rng, context, kind):
                    yield context, question


@pytest.mark.parametrize("num_documents", [1, 3])
@pytest.mark.parametrize("kind", ANSWERABLE)
def test_what_is_drawn_is_understood(kind, num_documents):
    for context, question in drawn(kind, num_documents):
        found = understand(question.text, context)
        assert found is not None, question.text
        assert (found.kind, found.gold, found.needs) == (question.kind, question.gold, question.needs)


@pytest.mark.parametrize("kind", [kind for kind in ANSWERABLE if kind != "creative"])
def test_the_answer_is_the_one_drawn(kind):
    for context, question in drawn(kind):
        found = understand(question.text, context)
        assert found and found.answer == question.answer


def test_rhymes_are_of_several_things():
    answers = {understand(question.text, context) == question for context, question in drawn("creative")}
    assert answers == {True, False}


@pytest.mark.parametrize("num_documents", [1, 3])
def test_what_cannot_be_answered_is_not_understood(num_documents):
    for context, question in drawn("unanswerable", num_documents):
        assert understand(question.text, context) is None, question.text


@pytest.mark.parametrize("kind", ANSWERABLE)
def test_changed_names_are_not_understood(kind):
    """Each name in the question, one at a time, is replaced by one that the context does not have."""
    num_changed = 0
    for context, question in drawn(kind):
        head, *options = question.text.split("\n")
        named = {name for fact in question.needs for name in (fact.subject, fact.subject.split()[-1], fact.value)}
        if context.grammar:
            named.add(context.grammar.language)
        for name in named:
            changed = re.sub(rf"(?<![\w-]){re.escape(name)}(?!\w)", STRANGER, head)
            if changed != head:
                num_changed += 1
                assert understand("\n".join([changed, *options]), context) is None, changed
    assert num_changed > 20


@pytest.mark.parametrize("kind", [kind for kind in ANSWERABLE if kind not in ("summary", "creative", "translation")])
def test_changed_nouns_are_not_understood(kind):
    num_changed = 0
    for context, question in drawn(kind):
        for relation in {fact.relation for fact in question.needs}:
            changed = re.sub(
                rf"\b({relation.plural or relation.noun}|{relation.noun})\b", "shoe size", question.text, count=1
            )
            if changed != question.text:
                num_changed += 1
                assert understand(changed, context) is None, changed
    assert num_changed > 20


@pytest.mark.parametrize("kind", ANSWERABLE)
def test_truncated_questions_are_not_understood(kind):
    for context, question in drawn(kind):
        cut = question.text.rpartition("\n" if kind == "multiple_choice" else " ")[0]
        assert understand(cut, context) is None, cut
        head = question.text.split("\n")[0]
        assert understand(head[: len(head) // 2], context) is None


@pytest.mark.parametrize("separator", [" ", "\n", ""])
@pytest.mark.parametrize("kind", ANSWERABLE)
def test_doubled_questions_are_not_understood(kind, separator):
    for context, question in drawn(kind):
        assert understand(f"{question.text}{separator}{question.text}", context) is None, question.text


@pytest.mark.parametrize("kind", [kind for kind in ANSWERABLE if kind != "multiple_choice"])  # whose options are free
def test_questions_with_something_behind_them_are_not_understood(kind):
    for context, question in drawn(kind):
        assert understand(f"{question.text} Please.", context) is None


def test_wrong_options_are_not_understood():
    for context, question in drawn("multiple_choice"):
        head, *lines = question.text.split("\n")
        right = "ABCD".index(question.gold[0])
        without = [*lines[:right], f"{STRANGER}{lines[right][-4:]}", *lines[right + 1 :]]
        twice = [
            lines[right][:-4] + line[-4:] if index == (right - 1) % 4 else line for index, line in enumerate(lines)
        ]
        for options in (without, twice, lines[:3], [*lines, "x (E)"], lines[::-1], [line[:-4] for line in lines]):
            assert understand("\n".join([head, *options]), context) is None, options


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("What is the room of Kadi Bofu?", "B-417"),
        ("Bofu: what is the room?", "B-417"),
        ("  What does Hokil take?\n", "vopol"),
        ("Who takes zekax?", "Kadi Bofu"),
        ("Which doctor has the room A-100?", "Mevi Gadu"),
        ("What is the room of the doctor of Kadi Bofu?", "A-100"),
        ("What is the height of the patient with the room B-417?", "120 cm"),
        ("Kadi Bofu or Pez Hokil: which has the higher height?", "Pez Hokil"),
        ("Count the drugs of Kadi Bofu.", "2"),
        ("How many drugs does Pez Hokil have?", "1"),
        ("I am writing a letter. What is the room of Bofu?", "B-417"),
    ],
)
def test_answers_worked_out_by_hand(ward, text, gold):
    question = understand(text, ward)
    assert question and question.gold == (gold,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "I am writing a letter.",
        "Hello, how are you?",
        "What is the room of ?",
        "what is the room of Kadi Bofu?",
        "What is the room of kadi bofu?",
        "What is the room of Pez Hokil?",  # not told
        "What is the drug of Kadi Bofu?",  # two of them
        "Who takes vopol?",  # two of them
        "Which patient has the doctor Mevi Gadu?",  # two of them
        "What is the height of the patient with the doctor Mevi Gadu?",  # two of them
        "Which patient has the room A-100?",  # a doctor has it
        "Which has the higher height, Kadi Bofu or Dab Fozel?",  # equal
        "Which has the higher height, Kadi Bofu or Kadi Bofu?",
        "Which has the better height, Kadi Bofu or Pez Hokil?",
        "Which has the higher room, Kadi Bofu or Mevi Gadu?",  # no number
        "Count the rooms of Kadi Bofu.",  # never several
        "How many drugs does Dab Fozel have?",  # none told
        "Give the room and drug of Kadi Bofu as JSON.",  # two drugs
        "Give the room and room of Kadi Bofu as JSON.",
        "Give the room of Kadi Bofu as JSON.",  # a record has two values at least
        "Give the room and height of Kadi Bofu as XML.",
        "Summarise what the text says about B-417.",
        "Write a short rhyme about nobody.",
        "Translate into Bazil: the dog helps the cat",
    ],
)
def test_malformed_unanswerable_and_ambiguous_texts(ward, text):
    assert understand(text, ward) is None


def test_words_of_two_tongues_are_ambiguous():
    context = make_context("tongue", "train", 0, num_documents=2, size=4)
    language = context.documents[0].title.split()[-1]
    (word, *_) = [fact.subject for fact in context.facts if len(context.by_subject[fact.subject]) == 2]
    assert understand(f"What is the word for {word}?", context) is None
    assert understand(f"Translate into {language}: the dog helps the cat", context) is None
    assert draw(rng_of(0), context, "translation") is None
