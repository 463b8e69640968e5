"""`cartridges eval`: cartridges and adapters beside no context, truncated context and reading everything."""

from pathlib import Path

import click

from cartridges.errors import InputError


@click.command()
@click.argument("cartridges", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--adapter", "adapters", type=click.Path(path_type=Path), multiple=True, help="An adapter; may be repeated."
)
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
    adapters: tuple[Path, ...],
    questions: Path,
    docs: tuple[Path, ...],
    model: str | None,
    slots: int | None,
    json_path: Path | None,
    device: str,
) -> None:
    """Ask the questions of every method, and compare each of CARTRIDGES and adapters with reading the documents."""
    from cartridges.adapter import AdapterManifest
    from cartridges.cartridge import Manifest
    from cartridges.find import find_cartridge, find_corpus
    from cartridges.questions import read_items

    if not cartridges and not adapters:
        raise click.UsageError("Missing argument 'CARTRIDGES...'")
    items = read_items(questions)
    folders = [find_cartridge(path, slots) for path in cartridges]
    digests = [Manifest.read(folder).corpus_digest for folder in folders]
    digests += [next(iter(AdapterManifest.read(folder).corpus_digests), "") for folder in adapters]
    corpus = find_corpus([*folders, *adapters][0], docs, digests[0])
    if corpus is None:
        first = [*cartridges, *adapters][0]
        raise InputError(f"nothing tells which documents {first} stands for; name them with --docs")
    if json_path and (json_path.is_dir() or not json_path.parent.is_dir()):
        raise InputError(f"cannot write {json_path}: give a file in a folder that exists")
    from rich.console import Console

    from cartridges.adapter import ThoughtAdapter
    from cartridges.cartridge import Cartridge
    from cartridges.engine.engine import Engine
    from cartridges.evaluation import evaluate
    from cartridges.model import load_for
    from cartridges.report import console_table

    loaded = [Cartridge.load(folder) for folder in folders]
    patched = [ThoughtAdapter.load(folder) for folder in adapters]
    used = load_for([*loaded, *patched][0].manifest.model, model, device)
    for given in (folders, adapters):
        if len(set(given)) < len(given):
            kind = "cartridge" if given is folders else "adapter"
            raise InputError(f"given the {kind} {given[0]} twice, expected different ones")
    labels = [str(path) for path in cartridges]
    if len(loaded) == len({cartridge.num_slots for cartridge in loaded}):
        labels = [str(cartridge.num_slots) for cartridge in loaded]
    named = {adapter.manifest.name or str(path): adapter for path, adapter in zip(adapters, patched, strict=True)}
    if len(named) < len(patched):
        named = dict(zip(map(str, adapters), patched, strict=True))
    results = evaluate(Engine(used), corpus, items, dict(zip(labels, loaded, strict=True)), adapters=named)
    console = Console(width=None if Console().is_terminal else 100)
    console.print(console_table(results))
    for note in results.notes:
        click.echo(f"note: {note}")
    if json_path:
        results.save(json_path)
