from collections import Counter

import pytest

from cartridges.pocket.families import FAMILIES, make_context
from cartridges.pocket.knowledge import CONTINENTS, ask_general, draw_general, draw_unknown, general_facts, unasked
from cartridges.pocket.lessons import relations_by_kind
from cartridges.pocket.names import SPLITS, split_of
from cartridges.pocket.questions import NOT_KNOWN, STRANGERS
from cartridges.rng import rng_of

FACTS = general_facts()


def told(noun: str) -> dict[str, str]:
    return {fact.subject: fact.value for fact in FACTS if fact.relation.noun == noun}


def test_there_are_three_hundred_facts():
    assert len(FACTS) >= 300


def test_no_subject_has_two_values():
    assert [key for key, n in Counter((fact.subject, fact.relation.noun) for fact in FACTS).items() if n > 1] == []


def test_known_facts():
    assert told("capital")["Mongolia"] == "Ulaanbaatar"
    assert told("capital")["Argentina"] == "Buenos Aires"
    assert told("continent")["Peru"] == "South America"
    assert told("colour")["the sky"] == "blue"
    assert told("past tense")["catch"] == "caught"


@pytest.mark.parametrize("noun", ["capital", "symbol", "opposite", "young", "sound", "past tense"])
def test_no_two_subjects_share_a_value(noun):
    assert [value for value, n in Counter(told(noun).values()).items() if n > 1] == []


def test_opposites_do_not_contradict_each_other():
    opposite = told("opposite")
    assert {word: opposite[other] for word, other in opposite.items() if other in opposite} == {}


def test_no_country_lies_on_two_continents():
    countries = [country for line in CONTINENTS.values() for country in line.split()]
    assert [country for country, n in Counter(countries).items() if n > 1] == []


def test_every_country_has_a_capital():
    assert told("continent").keys() < told("capital").keys()


def test_no_word_is_left_with_a_mark_for_a_space():
    assert [fact for fact in FACTS if "_" in fact.subject + fact.value] == []


def test_drawn_values_are_values_of_the_relation():
    names = make_context("ward", "train", 0).names
    for relation in {fact.relation.noun: fact.relation for fact in FACTS}.values():
        assert relation.draw(names) in told(relation.noun).values()


def test_every_fact_is_asked_for_by_name_and_answered():
    for fact in FACTS:
        question = ask_general(rng_of(fact.subject), fact)
        assert question.kind == "general"
        assert fact.subject in question.text
        assert question.answer == f"The {fact.relation.noun} of {fact.subject} is {fact.value}."
        assert (question.gold, question.needs) == ((fact.value,), (fact,))


def test_a_fact_that_was_asked_for_in_any_words_is_known_as_asked():
    asked = [ask_general(rng_of(number), FACTS[number % 3]).text for number in range(30)]
    assert unasked(asked) == FACTS[3:]
    assert unasked(["What is the dose of budoine?"]) == FACTS


def test_draws_reach_all_facts():
    rng = rng_of("general")
    assert {draw_general(rng).needs[0] for _ in range(6000)} == set(FACTS)


def test_documents_do_not_tell_of_what_is_known():
    known = {fact.subject for fact in FACTS if fact.subject[0].isupper()}
    for family in FAMILIES:
        for seed in range(20):
            assert not known & make_context(family, "train", seed).kind_of.keys()


@pytest.mark.parametrize("split", SPLITS)
def test_the_unknown_is_invented_of_its_split_and_not_answered(split):
    rng = rng_of("unknown", split)
    relations = relations_by_kind(rng, split)
    for _ in range(300):
        question = draw_unknown(rng, split, {"patient": relations["patient"]})
        names = [word.strip("?.,:") for word in question.text.split() if word[0].isupper()][-2:]
        assert {split_of(name.removesuffix(":")) for name in names if name in question.text.split("?")[0]} >= {split}
        assert (question.kind, question.answer, question.gold) == ("unknown", NOT_KNOWN, (NOT_KNOWN,))


def test_the_unknown_is_of_every_kind_of_subject():
    rng = rng_of("unknown")
    relations = relations_by_kind(rng, "train")
    assert relations.keys() == STRANGERS.keys()
    texts = [draw_unknown(rng, "train", relations).text for _ in range(300)]
    assert any(" Labs" in text for text in texts)
    assert any("_" in text for text in texts)
    assert len(set(texts)) == len(texts)
