import random

import pytest

from cartridges.pocket.families import FAMILIES, make_context
from cartridges.pocket.names import Names
from cartridges.pocket.world import Context, Document, Fact, Grammar, Relation, facts_by
from cartridges.rng import rng_of

ROOM = Relation("room", Names.code)
DRUG = Relation("drug", Names.drug, plural="drugs")
HEIGHT = Relation("height", Names.number, is_number=True)
WORD = Relation("word", Names.word, joint="for")


def context_of(*facts: Fact, kind: str = "patient", grammars: tuple[Grammar | None, ...] = (None,)) -> Context:
    kinds = {fact.subject: kind for fact in facts}
    documents = [
        Document("ward", "", "", facts if i == 0 else (), kinds, grammar) for i, grammar in enumerate(grammars)
    ]
    return Context(documents, Names(random.Random(0), "train"))


def test_canonical_phrases():
    assert ROOM.phrase("Kadi Bofu") == "room of Kadi Bofu"
    assert DRUG.phrase("Kadi Bofu", plural=True) == "drugs of Kadi Bofu"
    assert WORD.phrase("dog") == "word for dog"


def test_singles_leave_out_what_has_several_values():
    room, one, other = Fact("a", ROOM, "B-1"), Fact("a", DRUG, "x"), Fact("a", DRUG, "y")
    assert context_of(room, one, other).singles == [room]


def test_reversible_leaves_out_numbers_and_shared_values():
    own, shared, shared_too = Fact("a", ROOM, "B-1"), Fact("a", DRUG, "x"), Fact("b", DRUG, "x")
    assert context_of(own, shared, shared_too, Fact("a", HEIGHT, "120")).reversible == [own]


def test_a_value_shared_by_different_relations_is_reversible():
    facts = [Fact("a", ROOM, "x"), Fact("b", DRUG, "x")]
    assert context_of(*facts).reversible == facts


def test_short_names_are_last_names_of_people():
    assert context_of(Fact("Kadi Bofu", ROOM, "B-1")).short_names == {"Bofu": "Kadi Bofu"}
    assert context_of(Fact("Kadi Labs", ROOM, "B-1"), kind="firm").short_names == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_shares_a_short_name(family):
    for seed in range(30):
        context = make_context(family, "train", seed, num_documents=2, size=3)
        people = [subject for subject, kind in context.kind_of.items() if kind in ("patient", "doctor", "person")]
        assert sorted(context.short_names.values()) == sorted(people)


def test_two_tongues_have_no_common_grammar():
    grammar = Grammar("Bazil", "SVO", True, "ve", "za")
    assert context_of(grammars=(None, grammar)).grammar == grammar
    assert context_of(grammars=(grammar, grammar)).grammar is None


def test_more_names_are_new_to_the_context():
    context = make_context("ward", "train", 0)
    names = context.more_names(random.Random(1))
    before = set(context.names.used)
    assert not {names.word() for _ in range(500)} & before


def test_more_names_are_the_same_for_the_same_generator():
    context = make_context("ward", "train", 0)
    first, second = (context.more_names(random.Random(1)) for _ in range(2))
    assert [first.word() for _ in range(20)] == [second.word() for _ in range(20)]


def test_facts_by_keeps_the_order():
    facts = [Fact("b", ROOM, "1"), Fact("a", DRUG, "2"), Fact("b", DRUG, "3")]
    found = facts_by(lambda fact: fact.subject, facts)
    assert list(found.items()) == [("b", [facts[0], facts[2]]), ("a", [facts[1]])]


def test_keys_give_generators_of_their_own():
    assert len({rng_of("a", index).random() for index in range(100)}) == 100
