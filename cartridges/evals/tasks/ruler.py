"""RULER and needles in a haystack (arXiv 2404.06654): files made by RULER's own scripts, and needles made here.

Data: the JSONL that RULER's `prepare.py` writes (`index`, `input`, `outputs`), Apache-2.0; all 13 variants, known by
the form of their question. Each example has a context of its own, so it is a document of its own, and a cartridge for
many is one for many documents. `needles` makes one haystack with many needles, as a cartridge stands for one corpus:
keys, several values a key, several keys a question. Metric: string_match_all, the share of the outputs that a reply
holds; for the two QA variants string_match_part. Published: Llama-3.1-8B 4k 95.5, 128k 77.0 (2404.06654, mean of 13).
"""

import math
import re
from pathlib import Path
from random import Random

from cartridges.corpus import Corpus
from cartridges.errors import FormatError, InputError, unknown_name
from cartridges.evals.files import field, local_file, read_jsonl
from cartridges.evals.task import Task
from cartridges.questions import Item
from cartridges.rng import rng_of

# Where the question of a variant begins; the last match counts, as a haystack may hold anything.
QUESTIONS = re.compile(r"\n+(?=What (?:is|are all) the special magic |Question: )")
MAX_ITEMS = 100  # where no number is given
NUM_KEYS_ASKED = 4  # of the variant multiquery
VARIANTS = ("single", "multikey", "multivalue", "multiquery")
PUBLISHED = "arXiv 2404.06654: Llama-3.1-8B, mean of 13 variants, 95.5 at 4k and 77.0 at 128k tokens"
NEEDLE = "One of the special magic numbers for {key} is: {value}."
FILLER = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
ADJECTIVES = (
    "able brave calm dry eager fair glad huge idle just keen late mild neat odd pale quick rare shy tall".split()
)
NOUNS = (
    "anchor basket candle desert engine forest garden hammer island jacket kettle ladder mirror needle ocean".split()
)


def ruler_task(
    path: str | Path = "",
    variant: str = "",
    num_items: int | None = None,
    num_needles: int = 24,
    num_sentences: int = 200,
    seed: int = 0,
) -> Task:
    """A file of RULER's, or, without a path, needles made here for one of VARIANTS.

    Without `num_items` these are as many as there are, up to 100. Raises InputError, also where there are fewer than
    asked for, and FormatError.
    """
    if not path:
        return needles(variant or "multikey", num_items, num_needles, num_sentences, seed)
    file = local_file(path, "a JSONL file of RULER")
    name = variant or (file.parent.name if file.stem in ("validation", "test") else file.stem)
    texts: dict[str, str] = {}
    items: list[Item] = []
    rows = read_jsonl(file)
    if not rows:
        raise InputError(f"{file} holds no examples, expected lines with 'input' and 'outputs'")
    for number, row in enumerate(rows[: _number_of(num_items, len(rows))], start=1):
        where = f"{file}, example {number}"
        golds = tuple(str(gold) for gold in field(row, "outputs", list, where))
        context, question = parted(field(row, "input", str, where), where)
        key = f"example-{number:05}.txt"
        texts[key] = context
        match = "any" if name.startswith("qa") else "share"
        items.append(Item(question, ", ".join(golds), golds, match, key, name))
    return Task(f"ruler-{name}", Corpus.from_texts(texts), tuple(items), "string match", 128, PUBLISHED)


def _number_of(num_items: int | None, num_all: int) -> int:
    """How many items are taken of all that there are. Raises InputError for more than that."""
    if num_items is None:
        return min(MAX_ITEMS, num_all)
    if not 0 < num_items <= num_all:
        raise InputError(f"given num_items={num_items}, expected 1 to {num_all}; leave it out for as many as there are")
    return num_items


def parted(text: str, where: str) -> tuple[str, str]:
    """Context and question of an example. Raises FormatError where no known question is found."""
    starts = [match.end() for match in QUESTIONS.finditer(text)]
    if not starts:
        raise FormatError(f"{where}: no question of a RULER variant is found at its end; is 'input' whole?")
    return text[: starts[-1]].strip(), text[starts[-1] :].strip()


def needles(
    variant: str = "multikey",
    num_items: int | None = None,
    num_needles: int = 24,
    num_sentences: int = 200,
    seed: int = 0,
) -> Task:
    """One haystack of filler with many needles, of which no two items ask the same.

    Raises InputError for an unknown variant, too many needles, or more items than there are questions about them.
    """
    if variant not in VARIANTS:
        raise InputError(unknown_name("variant", variant, VARIANTS))
    rng = rng_of("needles", variant, seed)
    keys = [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    if not 0 < num_needles <= len(keys):
        raise InputError(f"given num_needles={num_needles}, expected 1 to {len(keys)}")
    num_values = 4 if variant == "multivalue" else 1
    values = {
        key: tuple(str(number) for number in rng.sample(range(1_000_000, 10_000_000), num_values))
        for key in rng.sample(keys, 1 if variant == "single" else num_needles)
    }
    sentences = [rng.choice(FILLER) for _ in range(num_sentences)]
    for key, numbers in values.items():
        for number in numbers:
            sentences.insert(rng.randint(0, len(sentences)), NEEDLE.format(key=key, value=number))
    corpus = Corpus.from_texts({"haystack.txt": " ".join(sentences)})
    num_items = _number_of(num_items, math.perm(len(values), keys_asked(values, variant)))
    items: dict[str, Item] = {}
    while len(items) < num_items:
        item = asked(rng, values, variant)
        items.setdefault(item.question, item)
    return Task(f"needles-{variant}-{seed}", corpus, tuple(items.values()), "string match", 128, PUBLISHED)


def keys_asked(values: dict[str, tuple[str, ...]], variant: str) -> int:
    """How many keys a question names."""
    return min(NUM_KEYS_ASKED, len(values)) if variant == "multiquery" else 1


def asked(rng: Random, values: dict[str, tuple[str, ...]], variant: str) -> Item:
    """A question for one key, or for four."""
    keys = rng.sample(sorted(values), keys_asked(values, variant))
    golds = tuple(number for key in keys for number in values[key])
    many = len(golds) > 1
    text = (
        f"What {'are all' if many else 'is'} the special magic number{'s' * many} for {', '.join(keys)} mentioned in "
    )
    answer = ", ".join(golds)
    return Item(f"{text}the provided text?", answer, golds, "share", "haystack.txt", variant)
