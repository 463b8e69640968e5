"""MTOB: translation of Kalamang from one grammar book (arXiv 2309.16575).

Data: github.com/lukemelas/mtob, under the terms of its repository; the files are in a zip whose password its README
tells, so that they do not leak into training data: unpack it and give the folder. Used are
`grammar_book_for_claude_medium.txt` or `_long.txt`, optionally `train_examples.json`, and `test_examples_ke.json` or
`_ek.json`. Metric: chrF by sacrebleu, the mean over sentences over 100. Published: arXiv 2506.06266, Llama-3.1-8B, P
= 2048: 33.5; +11.0 over the truncated book of 484k tokens; humans (2309.16575) 51.6 from Kalamang and 57.0 into it.
"""

from pathlib import Path
from typing import Any

from cartridges.corpus import Corpus
from cartridges.errors import FormatError, InputError, unknown_name
from cartridges.evals.files import field, local_file, read_json
from cartridges.evals.task import Task
from cartridges.questions import Item

LANGUAGES = {"ke": ("Kalamang", "English"), "ek": ("English", "Kalamang")}
BOOKS = {"medium": "grammar_book_for_claude_medium.txt", "long": "grammar_book_for_claude_long.txt"}
PROMPT = "Translate the following sentence from {source} to {target}. Give the translation alone.\n\n{sentence}"
PUBLISHED = "arXiv 2506.06266: Llama-3.1-8B, P = 2048, 33.5 chrF; +11.0 over the truncated 484k book"


def mtob_task(
    folder: str | Path,
    direction: str = "ke",
    book: str = "medium",
    with_sentences: bool = True,
    max_new_tokens: int = 128,
) -> Task:
    """The test sentences of a direction. `with_sentences` adds the parallel sentences for training to the corpus.

    Raises InputError for unknown names and missing files, FormatError for damaged ones.
    """
    for given, known, what in ((direction, LANGUAGES, "direction"), (book, BOOKS, "book")):
        if given not in known:
            raise InputError(unknown_name(what, given, known))
    source, target = LANGUAGES[direction]
    texts = {BOOKS[book]: found(folder, BOOKS[book]).read_text(encoding="utf-8")}
    if with_sentences:
        rows = pairs(found(folder, "train_examples.json"))
        texts["train_examples.txt"] = "\n\n".join(f"Kalamang: {a}\nEnglish: {b}" for a, b in rows)
    tests = pairs(found(folder, f"test_examples_{direction}.json"))
    items = [
        Item(PROMPT.format(source=source, target=target, sentence=a), b, (b,), "chrf", "", direction) for a, b in tests
    ]
    corpus = Corpus.from_texts(texts)
    return Task(f"mtob-{direction}-{book}", corpus, tuple(items), "chrF / 100", max_new_tokens, PUBLISHED)


def found(folder: str | Path, name: str) -> Path:
    """The file in the folder, or in one of those that the archive has below it. Raises InputError."""
    if not Path(folder).is_dir():
        raise InputError(f"given {folder}, expected the folder of MTOB's unpacked files")
    inside = sorted(Path(folder).rglob(name))
    return local_file(inside[0] if inside else Path(folder) / name, f"MTOB's {name}")


def pairs(file: Path) -> list[tuple[str, str]]:
    """Sentences with their translations; rows without a sentence (a canary string) are left out."""
    rows: Any = read_json(file)
    rows = rows if isinstance(rows, list) else [rows]
    kept = [row for row in rows if isinstance(row, dict) and "original" in row]
    if not kept:
        raise FormatError(
            f"{file}: expected a list of objects with 'original' and 'ground_truth'; is this the right file?"
        )
    wheres = [f"{file}, sentence {number}" for number in range(1, len(kept) + 1)]
    return [
        (
            field(row, "original", str, where),
            field(row, "ground_truth" if "ground_truth" in row else "translation", str, where),
        )
        for row, where in zip(kept, wheres, strict=True)
    ]
