"""`cartridges transmute`: conversations to an adapter."""

import math
from pathlib import Path

import click

from cartridges.commands.arguments import split_overrides
from cartridges.errors import InputError


@click.command()
@click.argument("data_and_overrides", nargs=-1, required=True, metavar="DATA... [KEY=VALUE]...")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder of the adapter.")
@click.option(
    "--docs",
    type=click.Path(path_type=Path),
    multiple=True,
    help="The documents; those of the build by default. With several DATA, one for each, in order.",
)
@click.option("--weight", "weights", type=float, multiple=True, help="Of each DATA, in order; 1 by default.")
@click.option("--model", help="pocket, a folder, or a Hugging Face name; that of DATA by default.")
@click.option("--name", default="", help="The adapter's name; that of OUT by default.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML of configuration fields.")
@click.option("--preset", help="pocket or default; chosen by the model if not given.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def command(
    data_and_overrides: tuple[str, ...],
    out: Path,
    docs: tuple[Path, ...],
    weights: tuple[float, ...],
    model: str | None,
    name: str,
    config_file: Path | None,
    preset: str | None,
    device: str,
) -> None:
    """Change a few matrices so that the model answers as if it had read what the conversations in DATA are about.

    KEY=VALUE sets a field of the configuration, such as method=down, layers=[0,1] or rank=16.
    """
    data, overrides = split_overrides(data_and_overrides)
    check(data, out, docs, weights)
    from cartridges.pairs import Source

    sources = []
    for number, path in enumerate(data):
        mine = docs if len(data) == 1 else docs[number : number + 1]
        sources.append(Source.load(path, mine, weights[number] if weights else 1.0))
    from cartridges.transmutation import TransmuteConfig, transmute
    from cartridges.writer import load_writer

    loaded = load_writer(sources[0].dataset, model, device, str(data[0]))
    chosen = preset or loaded.profile
    config = TransmuteConfig.resolve(chosen, config_file, overrides)
    click.echo(f"model: {loaded.identity.model_id}; preset: {chosen}; method: {config.method}")
    adapter = transmute(sources, loaded, config, name or out.resolve().name)
    adapter.save(out)
    metrics = adapter.manifest.metrics
    wanted = f"the change of the {'MLP input' if config.reads_inputs else 'block output'}"
    for line in metrics["layers"]:
        click.echo(f"layer {line['layer']}: {1 - line['unexplained']:.1%} of {wanted}")
    skipped = f", {metrics['num_skipped']} skipped" if metrics["num_skipped"] else ""
    size = adapter.num_bytes / 1e6
    click.echo(f"{metrics['num_conversations']} conversations{skipped} in {metrics['seconds']:.0f} s; {size:.2f} MB")
    click.echo(f"The adapter is in {out}. Talk to it with: cartridges chat --adapter {out}")


def check(data: list[Path], out: Path, docs: tuple[Path, ...], weights: tuple[float, ...]) -> None:
    """Raises InputError where counts do not fit, or `out` holds something that is no adapter."""
    from cartridges.adapter import MANIFEST

    if weights and len(weights) != len(data):
        raise InputError(f"given {len(weights)} --weight for {len(data)} datasets, expected one for each")
    if bad := [weight for weight in weights if not 0 < weight < math.inf]:
        raise InputError(f"given --weight {bad[0]:g}, expected a number above 0")
    if len(data) > 1 and docs and len(docs) != len(data):
        raise InputError(f"given {len(docs)} --docs for {len(data)} datasets, expected one for each")
    if out.is_file():
        raise InputError(f"given {out}, expected a folder; it is a file")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).exists():
        raise InputError(f"{out} holds other files; give a new or empty folder")
