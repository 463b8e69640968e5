"""`cartridges train`: conversations to a cartridge."""

import os
from pathlib import Path

import click

from cartridges.commands.arguments import parted
from cartridges.errors import InputError


@click.command()
@click.argument("data_and_overrides", nargs=-1, metavar="DATA [KEY=VALUE]...")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Run folder; it is taken up where it stopped."
)
@click.option("--docs", type=click.Path(path_type=Path), multiple=True, help="The documents, to initialise from.")
@click.option("--include", multiple=True, help="Only files that match; may be repeated.")
@click.option("--exclude", multiple=True, help="No files that match; may be repeated.")
@click.option("--model", help="pocket, a folder, or a Hugging Face name; that of DATA by default.")
@click.option("--name", default="", help="The cartridge's name; that of OUT by default.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML of configuration fields.")
@click.option("--preset", help="pocket or default; chosen by the model if not given.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def command(
    data_and_overrides: tuple[str, ...],
    out: Path,
    docs: tuple[Path, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    model: str | None,
    name: str,
    config_file: Path | None,
    preset: str | None,
    device: str,
) -> None:
    """Train a cartridge on the conversations in the folder DATA.

    With objective=text no DATA is needed: the cartridge then learns the documents' own text. Under torchrun or
    accelerate launch the rows of a step are shared out.
    """
    data, overrides = parted(data_and_overrides)
    if len(data) > 1:
        raise InputError(f"given {len(data)} folders of conversations ({data[0]}, {data[1]}, ...), expected one")
    from cartridges.corpus import Corpus
    from cartridges.dataset import Dataset

    say = click.echo if os.environ.get("RANK", "0") == "0" else lambda text: None  # one process tells
    dataset = Dataset.load(data[0]) if data else None
    corpus = Corpus.from_path(*docs, include=include, exclude=exclude) if docs else None
    if dataset and corpus and dataset.manifest.get("corpus_digest", corpus.digest) != corpus.digest:
        raise InputError(
            f"the conversations in {data[0]} are about other documents than those given; name the same ones, as they "
            "were, with --docs, --include and --exclude"
        )
    from cartridges.model import POCKET, load_model
    from cartridges.recipe import TrainConfig
    from cartridges.training import train
    from cartridges.writer import load_writer

    if dataset and dataset.manifest.get("is_finished") is False:
        say(f"note: the self-study in {data[0]} is not finished; training on what is there")
    place = device_of_process(device)
    loaded = load_writer(dataset, model, place, str(data[0])) if dataset else load_model(model or POCKET, place)
    chosen = preset or loaded.profile
    config = TrainConfig.resolve(chosen, config_file, overrides)
    say(f"model: {loaded.identity.model_id}; preset: {chosen}; {config.slots} slots")
    cartridge = train(dataset, loaded, corpus, config, out, name)
    metrics = cartridge.manifest.metrics
    loss = f", held-out loss {metrics['heldout_loss']:.4f} nats a token" if "heldout_loss" in metrics else ""
    say(f"{metrics['steps']} steps in {metrics['seconds']:.0f} s{loss}")
    say(f"The cartridge is in {out / 'cartridge'}. Look at it with: cartridges show {out}")


def device_of_process(device: str) -> str:
    """The device of this process, one of its own for each under torchrun."""
    if device == "cpu" or "LOCAL_RANK" not in os.environ:
        return device
    import torch
    from accelerate import PartialState

    return str(PartialState(cpu=not torch.cuda.is_available()).device)
