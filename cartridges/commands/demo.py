"""`cartridges demo`: the whole job on bundled documents with the bundled model, and what came of it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cartridges.commands.build import chat_command

if TYPE_CHECKING:
    from cartridges.results import Reply, Results

NUM_SHOWN = 3
INTRO = """\
A ward's records, {num_documents} documents of patients, doctors and drugs that the model has never seen, become a
cartridge: the model asks itself about pieces of them, and {slots} slots of keys and values learn to answer as if it had
read the piece. Then the same questions are asked with no context, with everything in the context, and with the
cartridge."""


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Run folder."
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def command(out: Path, overrides: tuple[str, ...]) -> None:
    """Build a cartridge of the bundled documents, measure it, and show what it answers.

    KEY=VALUE sets a field of the configuration, as in `cartridges build`.
    """
    from rich.console import Console

    from cartridges.corpus import Corpus
    from cartridges.pocket import WARD
    from cartridges.questions import read_items

    started = time.monotonic()
    console = Console(width=None if Console().is_terminal else 100, highlight=False)
    corpus = Corpus.from_path(WARD / "documents")
    items = read_items(WARD / "questions.jsonl")
    from cartridges.building import BuildConfig, build, plan_lines
    from cartridges.engine.engine import Engine
    from cartridges.model import load_model
    from cartridges.provenance import hardware
    from cartridges.report import console_table

    model = load_model("pocket")
    config = BuildConfig.resolve("pocket", None, overrides)
    console.print(INTRO.format(num_documents=len(corpus), slots=config.slots[-1]).replace("\n", " "))
    for line in plan_lines(corpus, model, config, len(items)):
        console.print(f"  {line}")
    made = build(corpus, Engine(model), out, config, items, console.print, {"documents": [str(WARD / "documents")]})
    console.print(console_table(made.results))
    for note in made.results.notes:
        console.print(f"note: {note}")
    for reply in chosen(made.results):
        console.print(f"\n[bold]{reply.question}[/bold]")
        for method in (made.results.reference, made.results.cartridges[-1].method):
            row = made.results.row(method)
            verdict = {1.0: "right", 0.0: "wrong"}.get(reply.scores.get(method, -1.0), "")
            console.print(f"  {row.label}: {reply.replies[method]}  ({verdict})", markup=False)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.print(f"\nAll of this took {minutes}:{seconds:02} on {hardware()}.")
    console.print(f"All numbers: {out / 'results.json'}. The report with its pictures: {made.report}")
    console.print(f"Talk to it: {chat_command(out, config)}. Your own documents: cartridges build FOLDER")


def chosen(results: "Results") -> list["Reply"]:
    """Three questions, the first that the file has of each kind and then the next ones, whatever the answers were."""
    firsts: dict[str, Reply] = {}
    for reply in results.replies:
        firsts.setdefault(reply.kind, reply)
    found = list(firsts.values())
    return [*found, *(reply for reply in results.replies if reply not in found)][:NUM_SHOWN]
