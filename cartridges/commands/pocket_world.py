"""`cartridges pocket world`: documents of the generated world, with questions of every kind and their answers."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cartridges.errors import InputError

if TYPE_CHECKING:
    from cartridges.pocket.questions import Question
    from cartridges.pocket.world import Context

MAX_DRAWS = 40  # for each question; a draw may find nothing to ask, or what was asked before


@click.command()
@click.option("--family", default="ward", show_default=True, help="ward, firm, code, tongue or haystack.")
@click.option("--split", default="test", show_default=True, help="train, validation or test; they share no name.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which documents of the split.")
@click.option(
    "--documents", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many, read together."
)
@click.option("--size", type=click.IntRange(1, 100), default=2, show_default=True, help="How much each document tells.")
@click.option("--questions", type=click.IntRange(0, 1000), default=1, show_default=True, help="How many of each kind.")
@click.option("--out", type=click.Path(path_type=Path), help="Write there instead: the documents and questions.jsonl.")
def command(family: str, split: str, seed: int, documents: int, size: int, questions: int, out: Path | None) -> None:
    """Print documents of the generated world, and questions of every kind with their answers."""
    from cartridges.pocket.families import make_context

    if out is not None:
        check_empty(out)
    context = make_context(family, split, seed, documents, size)
    asked, short = draw_questions(context, (family, split, seed), questions)
    if out is None:
        click.echo(context.text)
        for question in asked:
            click.echo(f"\n[{question.kind}] {question.text}\n{question.answer}")
    else:
        write(out, context, asked)
        click.echo(f"{out} holds {len(context.documents)} documents and {len(asked)} questions in questions.jsonl")
    if short:
        told = ", ".join(f"{kind} {num} of {questions}" for kind, num in short.items())
        click.echo(f"note: there is less to ask of some kinds: {told}", err=True)


def draw_questions(
    context: "Context", key: tuple[object, ...], num_each: int
) -> tuple[list["Question"], dict[str, int]]:
    """Different questions, `num_each` of every kind, and how many there are of the kinds that have fewer."""
    from cartridges.pocket.questions import DRAWS, draw
    from cartridges.pocket.world import rng_of

    asked: list[Question] = []
    short: dict[str, int] = {}
    for kind in DRAWS:
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


def check_empty(out: Path) -> None:
    """Refuse a file, and a folder whose files would mix with the new ones."""
    if out.exists() and not out.is_dir():
        raise InputError(f"given {out}, expected a folder; it is a file")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} holds files already; give a new or empty folder")


def write(out: Path, context: "Context", questions: list["Question"]) -> None:
    """One text file a document, and a line of JSON a question."""
    out.mkdir(parents=True, exist_ok=True)
    digits = len(str(len(context.documents)))
    for number, document in enumerate(context.documents, start=1):
        (out / f"document-{number:0{digits}}.txt").write_text(document.text + "\n", encoding="utf-8")
    rows = [
        {"kind": question.kind, "question": question.text, "answer": question.answer, "gold": list(question.gold)}
        for question in questions
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "questions.jsonl").write_text(lines, encoding="utf-8")
