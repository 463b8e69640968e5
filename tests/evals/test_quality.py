"""Synthetic conversations judged by the world's own rules: right ones, wrong ones, numbers from nowhere."""

from dataclasses import replace

import numpy as np
import pytest

from cartridges.conversation import Conversation, TopK
from cartridges.corpus import Corpus
from cartridges.errors import InputError
from cartridges.evals.quality import fabricated, quality
from cartridges.evals.tasks.pocket import paths_of, pocket_context
from cartridges.pocket.questions import draw
from cartridges.rng import rng_of

CONTEXT = pocket_context("ward", "validation", 0, 400)
PATHS = paths_of(CONTEXT)
CORPUS = Corpus.from_texts(dict(zip(PATHS, (document.text for document in CONTEXT.documents), strict=True)))


def talk(index, message, answer, document=PATHS[0], kind="question"):
    messages = [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
    stop = len(CORPUS.document(document).text) if document else 0
    ids, targets = np.arange(4), np.array([2, 3])
    teacher = TopK(np.array([[2], [3]]), np.array([[0.0], [0.0]]))
    return Conversation(index, messages, ids, targets, teacher, document, 0, stop, kind, 0, 0)


@pytest.fixture(scope="module")
def question():
    context = type(CONTEXT)(CONTEXT.documents[:1], CONTEXT.names)
    return draw(rng_of("quality"), context, "lookup")


def judged(*talks):
    return quality(talks, CORPUS, CONTEXT, PATHS)


def test_a_right_answer_is_right_and_touches_its_fact(question):
    found = judged(talk(0, question.text, question.answer))
    assert found["answerable_ratio"] == found["right_ratio"] == 1.0
    assert found["facts_covered"] > 0 and found["duplicate_ratio"] == 0.0 and not found["fabricated_ratio"]


def test_a_wrong_answer_and_a_message_about_nothing(question):
    wrong = talk(0, question.text, "The answer is 987654321.")
    found = judged(wrong, talk(1, "What does the sea sing?", "It sings.", kind="creative"))
    assert found["answerable_ratio"] == 0.5 and found["right_ratio"] == 0.0 and found["facts_covered"] == 0.0
    assert found["fabricated_ratio"] == 1.0
    assert found["by_kind"]["creative"]["answerable_ratio"] == 0.0


def test_duplicates_are_counted_by_meaningless_differences(question):
    same = talk(0, question.text, question.answer)
    found = judged(same, replace(same, index=1), talk(2, question.text.upper(), question.answer))
    assert found["duplicate_ratio"] == pytest.approx(2 / 3, abs=1e-4)


def test_numbers_of_the_message_are_not_made_up():
    assert fabricated("3 of 12, or 1,250", "12 beds for 1,250") == (3, 1)


def test_general_conversations_are_not_judged(question):
    found = judged(talk(0, question.text, question.answer), talk(1, "Hello?", "Hello.", document=""))
    assert found["num"] == 1
    with pytest.raises(InputError, match="given no conversations about the corpus"):
        judged(talk(1, "Hello?", "Hello.", document=""))
