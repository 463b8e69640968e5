"""`cartridges eval`: a cartridge beside no context, truncated context and reading everything."""

from pathlib import Path

import click

from cartridges.errors import InputError


@click.command()
@click.argument("cartridges", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--questions", type=click.Path(path_type=Path), required=True, help="JSONL of questions with answers.")
@click.option(
    "--docs", type=click.Path(path_type=Path), multiple=True, help="The documents; those of the build by default."
)
@click.option("--model", help="pocket, a folder, or a Hugging Face name; that of the cartridge by default.")
@click.option("--slots", type=int, help="Which size, where a build made several.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the results there, too.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def command(
    cartridges: tuple[Path, ...],
    questions: Path,
    docs: tuple[Path, ...],
    model: str | None,
    slots: int | None,
    json_path: Path | None,
    device: str,
) -> None:
    """Ask the questions of every method, and compare each of CARTRIDGES with reading the documents."""
    from cartridges.cartridge import Manifest
    from cartridges.find import find_cartridge, find_corpus
    from cartridges.questions import read_items

    items = read_items(questions)
    folders = [find_cartridge(path, slots) for path in cartridges]
    corpus = find_corpus(folders[0], docs, Manifest.read(folders[0]).corpus_digest)
    if corpus is None:
        raise InputError(f"nothing tells which documents {cartridges[0]} stands for; name them with --docs")
    if json_path and (json_path.is_dir() or not json_path.parent.is_dir()):
        raise InputError(f"cannot write {json_path}: give a file in a folder that exists")
    from rich.console import Console

    from cartridges.cartridge import Cartridge
    from cartridges.engine.engine import Engine
    from cartridges.evaluation import evaluate
    from cartridges.model import load_for
    from cartridges.report import console_table

    loaded = [Cartridge.load(folder) for folder in folders]
    used = load_for(loaded[0].manifest.model, model, device)
    if len(set(folders)) < len(folders):
        raise InputError(f"given the cartridge {folders[0]} twice, expected different ones")
    labels = [str(path) for path in cartridges]
    if len(loaded) == len({cartridge.num_slots for cartridge in loaded}):
        labels = [str(cartridge.num_slots) for cartridge in loaded]
    results = evaluate(Engine(used), corpus, items, dict(zip(labels, loaded, strict=True)))
    console = Console(width=None if Console().is_terminal else 100)
    console.print(console_table(results))
    for note in results.notes:
        click.echo(f"note: {note}")
    if json_path:
        results.save(json_path)
