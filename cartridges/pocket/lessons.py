"""What the model is taught, as conversations: answer from a document, answer without one, and ask.

A lesson is one conversation of many turns. The document stands in the system message; each turn is a question with its
answer, or a seed prompt with the message it leads to. Shares are relative weights, those named *_SHARE fractions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from cartridges.pocket.families import FAMILIES
from cartridges.pocket.knowledge import draw_general, draw_unknown
from cartridges.pocket.names import Names
from cartridges.pocket.questions import Question, draw
from cartridges.pocket.seeds import SEED_PROMPTS, bound, draw_message, draw_passage
from cartridges.pocket.world import Context, Document, Relation

INTROS = ("", "", "Answer from this text.\n\n", "Here is a part of a larger text.\n\n")
FAMILY_SHARES = {"ward": 30, "firm": 22, "code": 18, "tongue": 20, "haystack": 14}
# Measured on the shipped tokenizer.
TOKENS_PER_SIZE = {"ward": 125, "firm": 115, "code": 85, "tongue": 95, "haystack": 95}
MAX_SIZE = {"tongue": 4}  # a tongue has only so many words
KIND_SHARES = {
    "lookup": 26,
    "reverse": 14,
    "two_hop": 13,
    "comparison": 11,
    "count": 14,
    "multiple_choice": 12,
    "json": 5,
    "yaml": 5,
    "summary": 4,
    "creative": 2,
    "translation": 14,
    "unanswerable": 11,
    "general": 6,
    "ask": 36,
}
BOUND_SHARE = 0.75  # of the seed prompts that are bound to a passage
NO_DOCUMENT_SHARE = 0.08
GENERAL_SHARE = 0.65  # of the turns without a document; the rest is about things invented, and so not known


@dataclass(frozen=True)
class Turn:
    """One exchange: the user's text, the assistant's, and the kind it is counted under."""

    kind: str
    user: str
    assistant: str


@dataclass
class Lesson:
    """A system text (empty for none) and turns drawn one at a time, without end."""

    context: Context | None
    system: str
    next_turn: Callable[[], Turn]


def draw_context(rng: Random, split: str, num_tokens: int) -> Context:
    """Documents of one family, about `num_tokens` long together."""
    (family,) = rng.choices(list(FAMILY_SHARES), list(FAMILY_SHARES.values()))
    return fill_context(rng, family, split, num_tokens)


def fill_context(rng: Random, family: str, split: str, num_tokens: int) -> Context:
    """As many documents of the family as make about `num_tokens`."""
    names = Names(rng, split)
    units = max(1, round(num_tokens / TOKENS_PER_SIZE[family]))
    documents: list[Document] = []
    while units > 0 and not (family == "tongue" and documents):
        size = min(units, rng.randint(1, 6), MAX_SIZE.get(family, 6))
        documents.append(FAMILIES[family](rng, names, size))
        units -= size
    while units > 0:  # a tongue that is too short for the length goes with documents of another family
        documents.append(FAMILIES["haystack"](rng, names, min(units, 6)))
        units -= 6
    return Context(documents, names)


def relations_by_kind(rng: Random, split: str) -> dict[str, list[Relation]]:
    """Which relations each kind of subject has, read off a few documents."""
    found: dict[str, dict[str, Relation]] = {}
    for family in FAMILIES.values():
        document = family(rng, Names(rng, split), 3)
        for fact in document.facts:
            if fact.relation.joint == "of":
                found.setdefault(document.kind_of[fact.subject], {})[fact.relation.noun] = fact.relation
    return {kind: list(relations.values()) for kind, relations in found.items()}


def draw_lesson(rng: Random, split: str, num_tokens: int) -> Lesson:
    """A lesson over a context of about `num_tokens`, or over none."""
    if rng.random() < NO_DOCUMENT_SHARE:
        return _lesson_without_document(rng, split)
    context = draw_context(rng, split, num_tokens)
    kinds, shares = list(KIND_SHARES), list(KIND_SHARES.values())
    asked: set[str] = set()

    def within() -> Turn:
        for _ in range(50):
            (kind,) = rng.choices(kinds, shares)
            turn = draw_turn(rng, context, kind)
            if turn and (turn.user + turn.assistant not in asked):
                asked.add(turn.user + turn.assistant)
                return turn
        return _turn_of(draw_general(rng))

    return Lesson(context, rng.choice(INTROS) + context.text, within)


def _lesson_without_document(rng: Random, split: str) -> Lesson:
    relations = relations_by_kind(rng, split)

    def without() -> Turn:
        return _turn_of(draw_general(rng) if rng.random() < GENERAL_SHARE else draw_unknown(rng, split, relations))

    return Lesson(None, "", without)


def draw_turn(rng: Random, context: Context, kind: str) -> Turn | None:
    """A turn of the kind, one of KIND_SHARES; None where the draw found nothing to ask."""
    if kind == "ask":
        seed_kind = rng.choice(list(SEED_PROMPTS))
        message = draw_message(rng, context, seed_kind)
        if message is None:
            return None
        prompt = rng.choice(SEED_PROMPTS[seed_kind])
        passage = draw_passage(rng, context, message) if rng.random() < BOUND_SHARE else None
        return Turn("ask", bound(prompt, passage) if passage else prompt, message.text)
    question = draw_general(rng) if kind == "general" else draw(rng, context, kind)
    return question and _turn_of(question)


def _turn_of(question: Question) -> Turn:
    return Turn(question.kind, question.text, question.answer)
