"""`cartridges pocket world`: documents of the generated world, with questions of every kind and their answers."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cartridges.errors import InputError, unknown_name

if TYPE_CHECKING:
    from cartridges.pocket.questions import Question
    from cartridges.pocket.world import Context


@click.command()
@click.option("--family", default="ward", show_default=True, help="ward, firm, code, tongue or haystack.")
@click.option("--split", default="test", show_default=True, help="train, validation or test; they share no name.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which documents of the split.")
@click.option(
    "--documents", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many, read together."
)
@click.option("--size", type=click.IntRange(1, 100), default=2, show_default=True, help="How much each document tells.")
@click.option("--questions", type=click.IntRange(0, 1000), default=1, show_default=True, help="How many of each kind.")
@click.option("--kinds", help="Only questions of these kinds: lookup,count,...; all of them by default.")
@click.option("--out", type=click.Path(path_type=Path), help="Write there instead: the documents and questions.jsonl.")
def command(
    family: str, split: str, seed: int, documents: int, size: int, questions: int, kinds: str | None, out: Path | None
) -> None:
    """Print documents of the generated world, and questions of every kind with their answers."""
    from cartridges.pocket.families import make_context
    from cartridges.pocket.items import draw_questions

    wanted = parse_kinds(kinds)
    if out is not None:
        check_empty(out)
    context = make_context(family, split, seed, documents, size)
    asked, short = draw_questions(context, (family, split, seed), questions, wanted)
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


def parse_kinds(kinds: str | None) -> list[str]:
    """The kinds in "lookup,count", all without a text. Raises InputError for an unknown one."""
    from cartridges.pocket.questions import DRAWS

    wanted = [kind.strip() for kind in kinds.split(",")] if kinds is not None else list(DRAWS)
    for kind in wanted:
        if kind not in DRAWS:
            raise InputError(unknown_name("kind of question", kind, DRAWS))
    return wanted


def check_empty(out: Path) -> None:
    """Refuse a file, and a folder whose files would mix with the new ones."""
    if out.exists() and not out.is_dir():
        raise InputError(f"given {out}, expected a folder; it is a file")
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} holds files already; give a new or empty folder")


def write(out: Path, context: "Context", questions: list["Question"]) -> None:
    """One text file a document under `documents/`, and a line of JSON a question."""
    from cartridges.pocket.items import item_of
    from cartridges.questions import write_items

    (out / "documents").mkdir(parents=True, exist_ok=True)
    digits = len(str(len(context.documents)))
    names = [f"document-{number:0{digits}}.md" for number in range(1, len(context.documents) + 1)]
    for name, document in zip(names, context.documents, strict=True):
        (out / "documents" / name).write_text(document.text + "\n", encoding="utf-8")
    write_items(out / "questions.jsonl", [item_of(question, context, names) for question in questions])
