"""`cartridges lora`: an adapter as a LoRA."""

from pathlib import Path

import click

from cartridges.errors import InputError


@click.command()
@click.argument("adapters", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder of the LoRA.")
@click.option("--rank", type=click.IntRange(1), help="Of all matrices.")
@click.option("--energy", type=float, help="Instead of a rank: the share of every spectrum to keep.")
@click.option("--model", help="pocket, a folder, or a Hugging Face name; that of the adapter by default.")
def command(adapters: tuple[Path, ...], out: Path, rank: int | None, energy: float | None, model: str | None) -> None:
    """Write ADAPTERS, several as their sum, as a LoRA that PEFT and vLLM load; by default at full rank."""
    from cartridges.adapter import ThoughtAdapter, combined
    from cartridges.lora import FULL_ENERGY, export_lora
    from cartridges.model import load_for

    if rank and energy is not None:
        raise InputError(f"given --rank {rank} and --energy {energy:g}, expected one of them")
    adapter = combined([ThoughtAdapter.load(folder) for folder in adapters])
    used = load_for(adapter.manifest.model, model, "cpu")
    report = export_lora(adapter, used, out, rank, FULL_ENERGY if energy is None else energy)
    for path, error in report.errors.items():
        click.echo(f"{path}: {error:.2%} of the delta's norm is cut off")
    click.echo(f"rank {report.rank}, {report.num_bytes / 1e6:.2f} MB in {out}")
    if report.has_bias:
        click.echo("note: it has output biases (lora_bias), which PEFT loads and vLLM refuses")
