"""The generated world as tasks: every family and every kind of question, on documents of a split.

Data: made here from a seed, licence Apache-2.0 as the package. Metric: accuracy, by rules that read the concluded
value; chrF / 100 for translations. Published: nothing; the world is this package's own (`cartridges pocket eval`
measures the model on it). Splits share no name; whatever is chosen by a score is chosen on validation.
"""

from dataclasses import replace

from cartridges.corpus import Corpus
from cartridges.errors import InputError, unknown_name
from cartridges.evals.task import Task
from cartridges.pocket.families import FAMILIES, make_context
from cartridges.pocket.items import FREE, draw_questions, item_of
from cartridges.pocket.knowledge import ask_general, unasked
from cartridges.pocket.lessons import TOKENS_PER_SIZE, fill_context
from cartridges.pocket.names import SPLITS
from cartridges.pocket.questions import DRAWS
from cartridges.pocket.world import Context
from cartridges.rng import rng_of

SCORED = tuple(kind for kind in DRAWS if kind not in FREE or kind == "translation")


def pocket_context(family: str, split: str, seed: int, num_tokens: int) -> Context:
    """Documents of about so many tokens. Raises InputError."""
    if family not in FAMILIES:
        raise InputError(unknown_name("family", family, FAMILIES))
    if split not in SPLITS:
        raise InputError(unknown_name("split", split, SPLITS))
    return fill_context(rng_of("evals", family, split, seed), family, split, num_tokens)


def pocket_task(
    family: str = "ward",
    split: str = "test",
    seed: int = 0,
    num_tokens: int = 1300,
    kinds: tuple[str, ...] = ("lookup",),
    num_each: int = 60,
    num_documents: int = 0,
) -> Task:
    """`num_each` questions of each kind, or as many as there are, on about `num_tokens` of documents.

    With `num_documents` these are so many of about equal length. Raises InputError for kinds that nothing scores.
    """
    for kind in kinds:
        if kind not in SCORED:
            raise InputError(unknown_name("kind of question", kind, SCORED))
    if num_documents:
        size = max(1, round(num_tokens / num_documents / TOKENS_PER_SIZE.get(family, 100)))
        context = make_context(family, split, f"evals-{seed}", num_documents, size)
    else:
        context = pocket_context(family, split, seed, num_tokens)
    paths = paths_of(context)
    corpus = Corpus.from_texts(dict(zip(paths, (document.text for document in context.documents), strict=True)))
    questions, _ = draw_questions(context, ("evals", family, split, seed), num_each, list(kinds))
    items = [item_of(question, context, paths) for question in questions]
    items = [
        replace(item, golds=question.gold, match="translation") if question.kind == "translation" else item
        for item, question in zip(items, questions, strict=True)
    ]
    shape = f"{num_documents}x{num_tokens}" if num_documents else f"{num_tokens}"
    return Task(f"pocket-{family}-{split}-{seed}-{shape}", corpus, tuple(items))


def paths_of(context: Context) -> list[str]:
    """A name for each document of a context."""
    return [f"document-{number:03}.md" for number in range(1, len(context.documents) + 1)]


def general_task(num_items: int = 100, seed: int = 0, avoid: tuple[str, ...] = ()) -> Task:
    """General knowledge, which no document tells: what must survive a cartridge.

    `avoid` are questions whose facts are not asked for, in whatever words. Raises InputError where they leave nothing.
    """
    rng, facts = rng_of("evals", "general", seed), unasked(avoid)
    items = [item_of(ask_general(rng, fact)) for fact in rng.sample(facts, min(num_items, len(facts)))]
    if not items:
        raise InputError(f"given {len(avoid)} questions to avoid, which leave no fact of general knowledge to ask for")
    return Task(f"pocket-general-{seed}", Corpus.from_texts({"nothing.md": "Nothing is told here."}), tuple(items))
