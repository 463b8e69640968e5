import json
import subprocess
import sys
import zlib
from collections.abc import Iterator

import pytest
import yaml

from cartridges.pocket.families import FAMILIES, make_context
from cartridges.pocket.questions import DRAWS, LETTERS, NOT_TOLD, Question, draw, fill_lookup, lookup_forms
from cartridges.pocket.understand import understand
from cartridges.pocket.world import Context
from cartridges.rng import rng_of

# Which families have which kinds.
FAMILIES_OF = {
    "lookup": [*FAMILIES],
    "reverse": [*FAMILIES],
    "two_hop": [*FAMILIES],
    "comparison": ["ward", "firm", "code", "haystack"],
    "count": ["ward", "firm", "code"],
    "multiple_choice": [*FAMILIES],
    "json": [*FAMILIES],
    "yaml": [*FAMILIES],
    "summary": [*FAMILIES],
    "creative": [*FAMILIES],
    "translation": ["tongue"],
    "unanswerable": [*FAMILIES],
}
ONE_VALUE = ["lookup", "reverse", "two_hop", "comparison", "count", "translation"]


def asked(kind: str, num_documents: int = 1, size: int = 2) -> Iterator[tuple[Context, Question]]:
    for family in FAMILIES_OF[kind]:
        for seed in range(20):
            context = make_context(family, "train", seed, num_documents, size)
            rng = rng_of("asked", family, kind, seed)
            for _ in range(5):
                if question := draw(rng, context, kind):
                    yield context, question


def test_every_kind_is_tested():
    assert FAMILIES_OF.keys() == DRAWS.keys()


@pytest.mark.parametrize("kind", DRAWS)
def test_each_family_has_the_kinds_that_it_should(kind):
    contexts = {family: [make_context(family, "train", seed) for seed in range(10)] for family in FAMILIES}
    rng = rng_of("kinds")
    having = [family for family in FAMILIES if any(draw(rng, context, kind) for context in contexts[family])]
    assert having == FAMILIES_OF[kind]


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_questions_are_the_same_in_every_process(hash_seed):
    program = (
        "import zlib\n"
        "from cartridges.pocket.families import FAMILIES, make_context\n"
        "from cartridges.pocket.questions import DRAWS, draw\n"
        "from cartridges.rng import rng_of\n"
        "contexts = [make_context(family, 'train', 3, 2, 2) for family in FAMILIES]\n"
        "drawn = [draw(rng_of(i), c, kind) for c in contexts for kind in DRAWS for i in range(5)]\n"
        "print(zlib.crc32(repr([(q.text, q.answer, q.gold) for q in drawn if q]).encode()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
    )
    contexts = [make_context(family, "train", 3, 2, 2) for family in FAMILIES]
    drawn = [draw(rng_of(i), c, kind) for c in contexts for kind in DRAWS for i in range(5)]
    assert int(result.stdout) == zlib.crc32(repr([(q.text, q.answer, q.gold) for q in drawn if q]).encode())


@pytest.mark.parametrize("kind", DRAWS)
def test_questions_vary(kind):
    texts = [question.text for _, question in asked(kind)]
    assert len(set(texts)) > len(texts) / 3 > 10


@pytest.mark.parametrize("kind", ONE_VALUE)
def test_the_answer_ends_with_the_gold_value(kind):
    for _, question in asked(kind):
        assert question.answer.endswith(f" is {question.gold[0]}.")


@pytest.mark.parametrize(
    ("kind", "parse"), [("json", json.loads), ("yaml", lambda text: yaml.load(text, yaml.BaseLoader))]
)
def test_records_are_parsed_by_others(kind, parse):
    for _, question in asked(kind):
        assert [json.dumps(pair) for pair in parse(question.answer).items()] == list(question.gold)


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_records_hold_what_is_asked_for(kind):
    for _, question in asked(kind):
        nouns = question.text.split("the ", 1)[1].split(f" of {question.needs[0].subject}")[0]
        assert nouns.replace(" and ", ", ").split(", ") == [json.loads(pair)[0] for pair in question.gold]


@pytest.mark.parametrize("kind", ["summary", "creative"])
def test_free_texts_name_the_subject_and_what_is_told_of_it(kind):
    for _, question in asked(kind):
        subject, *told = question.gold
        assert subject in question.answer
        assert sum(claim in question.answer for claim in told) >= min(len(told), 4 if kind == "summary" else 1)


@pytest.mark.parametrize("kind", ["lookup", "reverse", "two_hop", "translation"])
def test_the_question_does_not_give_its_answer_away(kind):
    for _, question in asked(kind):
        assert question.gold[0] not in question.text.split()


@pytest.mark.parametrize("kind", [kind for kind in DRAWS if kind != "unanswerable"])
def test_every_question_rests_on_facts_of_its_context(kind):
    for context, question in asked(kind, num_documents=2):
        assert question.needs
        assert set(question.needs) <= set(context.facts)


def test_reverse_questions_have_one_answer():
    for context, question in asked("reverse", num_documents=2):
        (fact,) = question.needs
        assert [f.subject for f in context.facts if f.relation == fact.relation and f.value == fact.value] == list(
            question.gold
        )


def test_two_hops_do_not_name_the_step_between():
    for _, question in asked("two_hop"):
        between = question.needs[1].subject
        assert between not in question.text


def test_comparing_two_firms_needs_both_documents():
    found = list(asked_of_reports())
    assert len(found) > 30
    for context, question in found:
        both = [sum(fact in document.facts for fact in question.needs) for document in context.documents]
        assert both == [1, 1]
        assert [understand(question.text, Context([document], context.names)) for document in context.documents] == [
            None
        ] * 2


def asked_of_reports() -> Iterator[tuple[Context, Question]]:
    """Comparisons over two reports of one firm each."""
    for seed in range(60):
        context = make_context("firm", "train", seed, num_documents=2, size=1)
        if question := draw(rng_of(seed), context, "comparison"):
            yield context, question


def test_counts_are_the_number_of_values():
    for context, question in asked("count"):
        noun, subject = question.needs[0].relation.noun, question.needs[0].subject
        values = {fact.value for fact in context.facts if (fact.subject, fact.relation.noun) == (subject, noun)}
        assert question.gold == (str(len(values)),)


def test_a_comparison_says_which_number_is_more_before_it_concludes():
    for _, question in asked("comparison"):
        a, b = (int(fact.value.split()[0]) for fact in question.needs)
        assert f" {a} is {'more' if a > b else 'less'} than {b}. So the higher one is " in question.answer
        assert question.gold == (question.needs[0 if a > b else 1].subject,)


def test_a_translation_states_the_rules_that_it_uses_and_no_other():
    for context, question in asked("translation"):
        assert context.grammar is not None
        english = question.text.rpartition(": ")[2]
        assert ("past ending" in question.answer) == any(
            word.endswith("ed") and word != "red" for word in english.split()
        )
        assert ("adjective place" in question.answer) == (len(english.split()) > 5)
        assert question.answer.startswith(f"The word order of {context.grammar.language} is ")


def test_one_option_of_four_is_right():
    for context, question in asked("multiple_choice"):
        head, *lines = question.text.split("\n")
        assert [line[-4:] for line in lines] == [f" ({letter})" for letter in LETTERS]
        (fact,) = question.needs
        right = [
            line[-2]
            for line in lines
            if line[:-4] in {f.value for f in context.by_key[fact.subject, fact.relation.noun]}
        ]
        assert tuple(right) == question.gold
        assert len(set(lines)) == len(LETTERS)
        assert fact.value not in head


def test_every_option_is_right_at_times():
    assert {question.gold[0] for _, question in asked("multiple_choice")} == set(LETTERS)


def test_unanswerable_questions_have_no_fact():
    for context, question in asked("unanswerable", num_documents=2):
        answerable = {
            fill_lookup(form, fact.relation, name)
            for fact in context.facts
            for form in lookup_forms(fact.relation)
            for name in (fact.subject, fact.subject.split()[-1])
        }
        assert question.text not in answerable
        assert understand(question.text, context) is None
        assert question.gold == (NOT_TOLD,)
        assert question.answer.endswith(f" is {NOT_TOLD}.")


def test_what_a_caller_returns_is_never_called_unanswerable():
    for context, question in asked("unanswerable", num_documents=2):
        callers = {fact.subject for fact in context.facts if fact.relation.noun == "callee"}
        assert not any(f"The result of {caller} is" in question.answer for caller in callers)


def test_unanswerable_questions_are_about_strangers_and_about_the_known():
    known = [
        any(subject in question.text for subject in context.by_subject if " " in subject)
        for context, question in asked("unanswerable")
        if context.documents[0].family == "ward"
    ]
    assert 0.1 < sum(known) / len(known) < 0.9


def test_a_context_without_matter_has_no_question():
    context = make_context("haystack", "train", 0, size=1)
    assert draw(rng_of(0), context, "translation") is None
    assert draw(rng_of(0), context, "count") is None
    assert draw(rng_of(0), context, "comparison") is None
