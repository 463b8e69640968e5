"""The five kinds of seed prompts for which the model writes the user message, and what it may be asked to write.

The kinds are those of the paper (arXiv 2506.06266, section 4.1): structuring, summarization, question, use case and
creative.
"""

from dataclasses import replace
from random import Random

from cartridges.pocket.questions import Question, draw
from cartridges.pocket.world import Context

SEED_PROMPTS: dict[str, tuple[str, ...]] = {
    "structuring": (
        "Write a message that asks to structure facts of the text, as JSON or YAML.",
        "Ask for some facts of the text in a structured format.",
    ),
    "summarization": (
        "Write a message that asks to summarise a part of the text.",
        "Ask for a summary of what the text says about one thing in it.",
    ),
    "question": (
        "Ask a question about the text.",
        "Write a question that tests the knowledge of the text.",
    ),
    "use_case": (
        "Think of a practical task for which the text is needed, and ask for what it needs.",
        "Write a message of someone who needs the text for a task.",
    ),
    "creative": (
        "Write a message that asks for a creative text about something in the text.",
        "Ask for a short creative text.",
    ),
}

USE_CASES = (
    "I am writing a letter.",
    "I am filling in a form.",
    "I have to give a talk.",
    "My colleague needs to know this.",
)

QUESTION_SHARES = {
    "lookup": 50,
    "reverse": 14,
    "two_hop": 10,
    "comparison": 6,
    "count": 8,
    "multiple_choice": 6,
    "translation": 6,
}


def draw_message(rng: Random, context: Context, seed_kind: str) -> Question | None:
    """A user message, with its answer, that seed prompts of the kind (a key of SEED_PROMPTS) may lead to.

    None where the draw found nothing to ask.
    """
    if seed_kind == "structuring":
        return draw(rng, context, rng.choice(("json", "yaml")))
    if seed_kind == "summarization":
        return draw(rng, context, "summary")
    if seed_kind == "creative":
        return draw(rng, context, "creative")
    if seed_kind == "use_case":
        question = draw(rng, context, "lookup")
        return question and replace(question, text=f"{rng.choice(USE_CASES)} {question.text}")
    kinds, shares = zip(*QUESTION_SHARES.items(), strict=True)
    for kind in rng.choices(kinds, shares, k=8):
        if question := draw(rng, context, kind):
            return question
    return None
