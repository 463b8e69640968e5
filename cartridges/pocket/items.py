"""Questions of the world as items that any evaluation scores, with the document that answers each."""

import json

from cartridges.pocket.questions import Question, draw
from cartridges.pocket.world import Context
from cartridges.questions import Item
from cartridges.rng import rng_of

# Kinds whose answers are free text have no golds here; `pocket.scoring` knows more about them.
MAX_DRAWS = 40  # for each question; a draw may find nothing to ask, or what was asked before
FREE = ("summary", "creative", "translation", "unknown")


def item_of(question: Question, context: Context | None = None, paths: list[str] | None = None) -> Item:
    """The question as an item; `paths` name the documents of the context, in their order."""
    golds, match = question.gold, "final"
    if question.kind == "multiple_choice":
        golds, match = (f"{question.needs[0].value} ({question.gold[0]})",), "final"
    elif question.kind in ("json", "yaml"):
        golds, match = (json.dumps(dict(json.loads(pair) for pair in question.gold)),), "record"
    elif question.kind == "unanswerable":
        golds, match = (question.answer,), "exact"
    elif question.kind in FREE:
        golds, match = (), "contains"
    document = ""
    if context and paths and question.needs:
        holding = [
            path
            for path, document in zip(paths, context.documents, strict=True)
            if set(question.needs) <= set(document.facts)
        ]
        document = holding[0] if len(holding) == 1 else ""
    return Item(question.text, question.answer, tuple(golds), match, document, question.kind)


def draw_questions(
    context: Context, key: tuple[object, ...], num_each: int, kinds: list[str]
) -> tuple[list[Question], dict[str, int]]:
    """Different questions, `num_each` of every kind, and how many there are of the kinds that have fewer."""
    asked: list[Question] = []
    short: dict[str, int] = {}
    for kind in kinds:
        rng = rng_of("world", *key, kind)
        found: dict[str, Question] = {}
        for _ in range(MAX_DRAWS * num_each):
            if len(found) == num_each:
                break
            if question := draw(rng, context, kind):
                found.setdefault(question.text, question)
        asked += found.values()
        if len(found) < num_each:
            short[kind] = len(found)
    return asked, short
