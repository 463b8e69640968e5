"""`cartridges show`: what a cartridge is, how big and how faithful. Needs no torch."""

import json
from pathlib import Path

import click

from cartridges.cartridge import Manifest, check_tensors
from cartridges.find import find_cartridge


@click.command()
@click.argument("cartridge", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.option("--slots", type=int, help="Which size, where a build made several.")
def command(cartridge: Path, as_json: bool, slots: int | None) -> None:
    """Tell size, origin, training and fidelity of CARTRIDGE, a cartridge or the folder of a build."""
    folder = find_cartridge(cartridge, slots)
    manifest = Manifest.read(folder)
    raw = check_tensors(folder, manifest)
    if as_json:
        click.echo(json.dumps({**manifest.model_dump(mode="json"), "num_bytes": len(raw)}, indent=1))
        return
    for label, text in lines_of(manifest, len(raw)):
        click.echo(f"{label:<12} {text}")
    click.echo(f"{'folder':<12} {folder}")


def lines_of(manifest: Manifest, num_bytes: int) -> list[tuple[str, str]]:
    """What is worth telling, as label and text."""
    model, training, metrics = manifest.model, manifest.training, manifest.metrics
    shapes = sorted({f"{layer.num_kv_heads} KV heads of {layer.head_size}" for layer in model.layers})
    found = [
        ("cartridge", f"{manifest.name or '(unnamed)'}, digest {manifest.digest[:12]}"),
        (
            "size",
            f"{manifest.num_slots} slots ({manifest.num_frozen} frozen), {num_bytes / 1e6:.2f} MB, {manifest.dtype}",
        ),
        ("model", f"{model.model_id} ({model.architecture}, {len(model.layers)} layers, {' and '.join(shapes)})"),
        ("started from", str(manifest.initializer.get("kind", "?"))),
    ]
    if training:
        told = f"{training.get('objective')}, lr {training.get('lr')}, {metrics.get('steps')} steps"
        found.append(("training", f"{told}, {metrics.get('seconds')} s, kept step {metrics.get('kept_step')}"))
    if (loss := metrics.get("heldout_loss")) is not None:
        found.append(("held-out", f"{loss:.4f} nats a token from the teacher"))
    found.append(
        ("made", f"{manifest.created}, corpus {manifest.corpus_digest[:12]}, data {manifest.dataset_digest[:12]}")
    )
    return found
