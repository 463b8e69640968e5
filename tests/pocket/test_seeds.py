import pytest

from cartridges.pocket.families import FAMILIES, make_context
from cartridges.pocket.questions import DRAWS, LAST_NAME_SHARE
from cartridges.pocket.seeds import MORE_LAST_NAMES, QUESTION_SHARES, SEED_PROMPTS, USE_CASES, draw_message
from cartridges.pocket.understand import understand
from cartridges.rng import rng_of

KINDS_BEHIND = {
    "structuring": {"json", "yaml"},
    "summarization": {"summary"},
    "question": set(QUESTION_SHARES),
    "use_case": {"lookup"},
    "creative": {"creative"},
}


def messages(seed_kind: str, family: str) -> list:
    contexts = [make_context(family, "train", seed) for seed in range(30)]
    keys = [(index, i) for index in range(len(contexts)) for i in range(5)]
    drawn = [(contexts[index], draw_message(rng_of(index, i), contexts[index], seed_kind)) for index, i in keys]
    return [(context, message) for context, message in drawn if message]


def test_the_kinds_are_those_of_the_paper():
    assert SEED_PROMPTS.keys() == KINDS_BEHIND.keys()


def test_no_prompt_serves_two_kinds():
    prompts = [prompt for prompts in SEED_PROMPTS.values() for prompt in prompts]
    assert len(set(prompts)) == len(prompts)


def test_only_answerable_kinds_are_asked():
    assert QUESTION_SHARES.keys() < DRAWS.keys() - {"unanswerable"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed_kind", SEED_PROMPTS)
def test_messages_are_understood(seed_kind, family):
    found = messages(seed_kind, family)
    assert len(found) > 90
    for context, message in found:
        question = understand(message.text, context)
        assert question, message.text
        assert (question.kind, question.gold) == (message.kind, message.gold)


@pytest.mark.parametrize("seed_kind", SEED_PROMPTS)
def test_each_seed_prompt_leads_to_its_kinds_of_question(seed_kind):
    kinds = {message.kind for family in FAMILIES for _, message in messages(seed_kind, family)}
    assert kinds == KINDS_BEHIND[seed_kind]


def test_use_cases_come_before_the_question():
    for _, message in messages("use_case", "ward"):
        (use_case,) = [text for text in USE_CASES if message.text.startswith(f"{text} ")]
        assert message.text.count(use_case) == 1


def test_people_are_asked_about_by_their_last_names_now_and_then():
    """Some questions are drawn so, and some of the rest are made so."""
    contexts = [make_context("ward", "train", seed) for seed in range(20)]
    found, by_last_name = 0, 0
    for index, context in enumerate(contexts):
        for i in range(100):
            message = draw_message(rng_of("names", index, i), context, "use_case")
            subject = message.needs[0].subject if message else ""
            if message and subject in context.short_names.values():
                found += 1
                by_last_name += subject not in message.text
                assert subject.split()[-1] in message.text
    expected = 1 - (1 - LAST_NAME_SHARE) * (1 - MORE_LAST_NAMES)
    assert found > 1000
    assert abs(by_last_name / found - expected) < 3 * (expected * (1 - expected) / found) ** 0.5
