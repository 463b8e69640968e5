import subprocess
import sys
import zlib
from collections import Counter

import pytest

from cartridges.pocket.families import FAMILIES, make_context
from cartridges.pocket.lessons import FAMILY_SHARES, INTROS, KIND_SHARES, draw_lesson, draw_turn, fill_context
from cartridges.pocket.questions import DRAWS
from cartridges.pocket.seeds import SEED_PROMPTS, bound
from cartridges.pocket.understand import understand
from cartridges.rng import rng_of

LESSONS = [draw_lesson(rng_of("lessons", seed), "train", 500) for seed in range(60)]
TURNS = [[lesson.next_turn() for _ in range(25)] for lesson in LESSONS]


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_lessons_are_the_same_in_every_process(hash_seed):
    program = (
        "import zlib\n"
        "from cartridges.pocket.lessons import draw_lesson\n"
        "from cartridges.rng import rng_of\n"
        "lessons = [draw_lesson(rng_of('lessons', seed), 'train', 500) for seed in range(20)]\n"
        "print(zlib.crc32(repr([(x.system, [x.next_turn() for _ in range(25)]) for x in lessons]).encode()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
    )
    expected = [(lesson.system, turns) for lesson, turns in zip(LESSONS[:20], TURNS[:20], strict=True)]
    assert int(result.stdout) == zlib.crc32(repr(expected).encode())


def test_all_families_have_a_share():
    assert FAMILY_SHARES.keys() == FAMILIES.keys()


def test_all_kinds_have_a_share():
    assert KIND_SHARES.keys() == {*DRAWS, "general", "ask"}


def test_all_families_and_kinds_are_taught():
    assert {lesson.context.documents[0].family for lesson in LESSONS if lesson.context} == set(FAMILIES)
    assert {turn.kind for turns in TURNS for turn in turns} == {*KIND_SHARES, "unknown"}


def test_the_system_text_is_the_context_behind_an_introduction():
    for lesson in LESSONS:
        if lesson.context:
            assert lesson.system.endswith(lesson.context.text)
            assert lesson.system.removesuffix(lesson.context.text) in INTROS


def test_a_lesson_without_a_document_asks_for_the_known_and_the_unknown():
    found = [turns for lesson, turns in zip(LESSONS, TURNS, strict=True) if lesson.context is None]
    assert found
    assert {turn.kind for turns in found for turn in turns} == {"general", "unknown"}
    assert all(lesson.system == "" for lesson in LESSONS if lesson.context is None)


def test_nothing_is_asked_twice_in_a_lesson_with_documents():
    for lesson, turns in zip(LESSONS, TURNS, strict=True):
        if lesson.context:
            repeated = [key for key, n in Counter((turn.user, turn.assistant) for turn in turns).items() if n > 1]
            assert repeated == []


def test_a_lesson_has_no_end():
    lesson = next(
        lesson for lesson in (draw_lesson(rng_of("end", seed), "train", 50) for seed in range(9)) if lesson.context
    )
    assert all(lesson.next_turn().assistant for _ in range(300))


def test_answers_are_those_that_the_text_gives():
    for lesson, turns in zip(LESSONS, TURNS, strict=True):
        for turn in turns:
            if turn.kind in DRAWS.keys() - {"unanswerable", "creative"}:
                assert lesson.context
                question = understand(turn.user, lesson.context)
                assert question and question.answer == turn.assistant


def test_seed_prompts_lead_to_messages_that_the_text_answers():
    prompts = tuple(prompt for prompts in SEED_PROMPTS.values() for prompt in prompts)
    for lesson, turns in zip(LESSONS, TURNS, strict=True):
        for turn in turns:
            if turn.kind == "ask":
                assert lesson.context
                assert turn.user.startswith(prompts)
                assert understand(turn.assistant, lesson.context)


def test_some_seed_prompts_are_bound_to_a_passage_of_the_text():
    prompts = [prompt for prompts in SEED_PROMPTS.values() for prompt in prompts]
    num_bound = num_about = num_all = 0
    for lesson, turns in zip(LESSONS, TURNS, strict=True):
        for turn in (turn for turn in turns if turn.kind == "ask"):
            assert lesson.context
            num_all += 1
            (prompt,) = [prompt for prompt in prompts if turn.user.startswith(prompt)]
            if turn.user == prompt:
                continue
            passage = next(p for p in lesson.context.passages if turn.user == bound(prompt, p))
            question = understand(turn.assistant, lesson.context)
            assert question
            num_bound += 1
            num_about += any(fact.value in passage for fact in question.needs)
    assert 0.55 < num_bound / num_all < 0.85
    assert num_about / num_bound > 0.8


def test_a_kind_that_the_context_lacks_gives_no_turn():
    context = make_context("haystack", "train", 0)
    assert draw_turn(rng_of(0), context, "translation") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_contexts_are_about_as_long_as_asked_for(family, tiny_tokenizer):
    """Within a factor of two on average, as the sizes were measured on another tokenizer."""
    texts = [fill_context(rng_of(seed), family, "train", 800).text for seed in range(20)]
    mean_len = sum(len(tiny_tokenizer.encode(text)) for text in texts) / len(texts)
    assert 400 < mean_len < 1600


def test_a_tongue_too_short_for_the_length_goes_with_other_documents():
    context = fill_context(rng_of(0), "tongue", "train", 3000)
    assert [document.family for document in context.documents][:2] == ["tongue", "haystack"]
    assert context.grammar
