"""`cartridges build`: from documents to a trained, measured cartridge with its report."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cartridges.commands.arguments import connected, server_options, split_overrides
from cartridges.errors import InputError

if TYPE_CHECKING:
    from cartridges.building import BuildConfig
    from cartridges.model import Model


@click.command()
@click.argument("docs_and_overrides", nargs=-1, required=True, metavar="DOCS... [KEY=VALUE]...")
@click.option("--model", default="pocket", show_default=True, help="pocket, a folder, or a Hugging Face name.")
@click.option("--slots", help="Size of the cartridge, or several: 64,128,256.")
@click.option("--questions", type=click.Path(path_type=Path), help="JSONL of questions with answers, to measure with.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/<name of DOCS> by default.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML of configuration fields.")
@click.option("--preset", help="pocket or default; chosen by the model if not given.")
@click.option("--include", multiple=True, help="Only files that match; may be repeated.")
@click.option("--exclude", multiple=True, help="No files that match; may be repeated.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@server_options
def command(
    docs_and_overrides: tuple[str, ...],
    model: str,
    slots: str | None,
    questions: Path | None,
    out: Path | None,
    config_file: Path | None,
    preset: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    device: str,
    urls: tuple[str, ...],
    dialect: str,
    served_name: str,
    api_key_file: Path | None,
) -> None:
    """Make a cartridge that stands for DOCS (files and folders), measure it and report.

    KEY=VALUE sets a field of the configuration, such as synthesize.num_conversations=4096 or train.lr=1e-2. The same
    command goes on where it was stopped, and does nothing twice. With --url the servers named there, which run MODEL,
    write the conversations; training and measuring stay here.
    """
    docs, overrides = split_overrides(docs_and_overrides)
    if slots is not None:
        overrides = [*overrides, f"slots={parse_slots(slots)}"]
    from cartridges.corpus import Corpus
    from cartridges.questions import read_items

    corpus = Corpus.from_path(*docs, include=include, exclude=exclude)
    items = read_items(questions) if questions else []
    from rich.console import Console

    from cartridges.building import build, plan_lines
    from cartridges.engine.engine import Engine
    from cartridges.model import load_model
    from cartridges.report import console_table

    loaded = load_model(model, device)
    config = resolve(loaded, preset, config_file, overrides)
    for line in plan_lines(corpus, loaded, config, len(items)):
        click.echo(line)
    source = {"documents": [str(path.resolve()) for path in docs], "include": include, "exclude": exclude}
    folder = out or Path("runs") / docs[0].resolve().stem
    teacher = connected(urls, dialect, served_name, api_key_file, model)
    made = build(corpus, Engine(loaded), folder, config, items, click.echo, source, teacher)
    console = Console(width=None if Console().is_terminal else 100)
    console.print(console_table(made.results))
    for note in made.results.notes:
        click.echo(f"note: {note}")
    click.echo(f"The report is {made.report}. Talk to it: {chat_command(folder, config)}")


def chat_command(folder: Path, config: "BuildConfig") -> str:
    """What to type to talk to what was built, to the largest cartridge where there are several."""
    size = ["--slots", str(max(config.slots))] if len(config.slots) > 1 else []
    return shlex.join(["cartridges", "chat", str(folder), *size])


def resolve(model: "Model", preset: str | None, file: Path | None, overrides: list[str]) -> "BuildConfig":
    """The configuration; the preset that fits the model unless one is named."""
    from cartridges.building import BuildConfig

    chosen = preset or model.profile
    why = "given" if preset else f"it fits {model.identity.model_id}"
    click.echo(f"preset: {chosen} ({why})")
    return BuildConfig.resolve(chosen, file, overrides)


def parse_slots(text: str) -> list[int]:
    """The sizes in "64,128". Raises InputError."""
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or sizes[0] < 2:
        raise InputError(f"given --slots {text}, expected a number of at least 2, or several such as 64,128,256")
    return sizes
