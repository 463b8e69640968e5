"""`cartridges synthesize`: the model writes conversations about documents."""

import shlex
from pathlib import Path

import click

from cartridges.commands.arguments import connected, server_options, split_overrides


@click.command()
@click.argument("docs_and_overrides", nargs=-1, required=True, metavar="DOCS... [KEY=VALUE]...")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Run folder; it is taken up where it stopped."
)
@click.option("--model", default="pocket", show_default=True, help="pocket, a folder, or a Hugging Face name.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML of configuration fields.")
@click.option("--preset", help="pocket or default; chosen by the model if not given.")
@click.option("--include", multiple=True, help="Only files that match; may be repeated.")
@click.option("--exclude", multiple=True, help="No files that match; may be repeated.")
@click.option("--preview", type=click.IntRange(0), default=1, show_default=True, help="Conversations to print.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@server_options
def command(
    docs_and_overrides: tuple[str, ...],
    out: Path,
    model: str,
    config_file: Path | None,
    preset: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    preview: int,
    device: str,
    urls: tuple[str, ...],
    dialect: str,
    served_name: str,
    api_key_file: Path | None,
) -> None:
    """Write conversations about DOCS (files and folders) into the folder OUT.

    KEY=VALUE sets a field of the configuration, such as num_conversations=4096; a larger number extends a finished run.
    With --url the servers named there answer, and just the tokenizer of MODEL is read here.
    """
    from cartridges.corpus import Corpus

    docs, overrides = split_overrides(docs_and_overrides)
    corpus = Corpus.from_path(*docs, include=include, exclude=exclude)
    remote = connected(urls, dialect, served_name, api_key_file, model)
    from cartridges.model import load_model, profile_of
    from cartridges.study_plan import SynthesizeConfig
    from cartridges.synthesis import client_of, synthesize

    if remote is None:
        from cartridges.engine.engine import Engine

        client = client_of(Engine(load_model(model, device)))
    else:
        client = remote
    profile = preset or profile_of(client.chat_format.tokenizer)
    config = SynthesizeConfig.resolve(profile, config_file, overrides)
    click.echo(f"corpus: {corpus.summary()}; preset: {profile}")
    dataset = synthesize(corpus, client, config, out)
    if preview:
        click.echo(dataset.preview(preview))
    about = dataset.manifest
    dropped = ", ".join(f"{num} {reason}" for reason, num in about["dropped"].items()) or "none"
    click.echo(f"{about['num_kept']} of {about['num_conversations']} conversations kept; dropped: {dropped}")
    for line in remote.pool.lines() if remote else ():
        click.echo(line)
    named = [("--docs", docs), ("--include", include), ("--exclude", exclude)]
    options = [part for option, values in named for value in values for part in (option, str(value))]
    click.echo(f"Train on them with: {shlex.join(['cartridges', 'train', str(out), *options, '--out', 'runs/train'])}")
