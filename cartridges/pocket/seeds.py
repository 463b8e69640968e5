"""The five kinds of seed prompts for which the model writes the user message, and what it may be asked to write.

The kinds are those of the paper (arXiv 2506.06266, section 4.1): structuring, summarization, question, use case and
creative.
"""

from dataclasses import replace
from random import Random

from cartridges.pocket.questions import Question, called, draw
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

# How a seed prompt is bound to a passage of the text.
BOUND = "{prompt}\n\nIt is about this part:\n{passage}"
EMPTY_SHARE = 0.08  # of the bound prompts in lessons: the passage tells nothing, and the message is about anything else

# Of the messages that look up something of a person and name them in full, so many name the last name after all: the
# text has whole names, and a message copies the text unless it has learned to do otherwise.
MORE_LAST_NAMES = 0.15

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
    "multiple_choice": 14,
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
        return question and replace(
            question, text=f"{rng.choice(USE_CASES)} {by_last_name(rng, context, question).text}"
        )
    kinds, shares = zip(*QUESTION_SHARES.items(), strict=True)
    for kind in rng.choices(kinds, shares, k=8):
        if question := draw(rng, context, kind):
            return by_last_name(rng, context, question)
    return None


def by_last_name(rng: Random, context: Context, question: Question) -> Question:
    """A look-up or choice about a person, now and then with the last name alone; other questions as they are."""
    if question.kind not in ("lookup", "multiple_choice"):
        return question
    subject = question.needs[0].subject
    return replace(question, text=question.text.replace(subject, called(rng, context, subject, MORE_LAST_NAMES)))


def bound(prompt: str, passage: str) -> str:
    """The seed prompt, bound to a passage."""
    return BOUND.format(prompt=prompt, passage=passage)


def draw_passage(rng: Random, context: Context, message: Question) -> str | None:
    """A passage that tells of what the message asks; now and then one that tells nothing. None where there is none."""
    told = [fact.value for fact in context.facts]
    empty = [passage for passage in context.passages if not any(value in passage for value in told)]
    if empty and rng.random() < EMPTY_SHARE:
        return rng.choice(empty)
    fact = rng.choice(message.needs)
    names = {fact.subject, fact.subject.split()[-1]}
    fitting = [p for p in context.passages if fact.value in p and any(name in p for name in names)]
    return rng.choice(fitting) if fitting else None
