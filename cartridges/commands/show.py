"""`cartridges show`: what a cartridge or an adapter is, how big and how faithful. A cartridge needs no torch."""

import json
from pathlib import Path

import click

from cartridges.adapter import MANIFEST as ADAPTER_MANIFEST
from cartridges.adapter import TENSORS as ADAPTER_TENSORS
from cartridges.adapter import AdapterManifest, ThoughtAdapter
from cartridges.cartridge import Manifest, ModelIdentity, check_tensors
from cartridges.errors import InputError
from cartridges.find import find_cartridge


@click.command()
@click.argument("cartridge", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.option("--slots", type=int, help="Which size, where a build made several.")
def command(cartridge: Path, as_json: bool, slots: int | None) -> None:
    """Tell size, origin, training and fidelity of CARTRIDGE: a cartridge, the folder of a build, or an adapter."""
    if (cartridge / ADAPTER_MANIFEST).is_file():
        if slots is not None:
            raise InputError(f"given --slots {slots}, but {cartridge} is an adapter, which has none; leave it out")
        folder, manifest = cartridge, ThoughtAdapter.load(cartridge).manifest
        num_bytes = (folder / ADAPTER_TENSORS).stat().st_size
        lines = adapter_lines(manifest, num_bytes)
    else:
        folder = find_cartridge(cartridge, slots)
        manifest = Manifest.read(folder)
        num_bytes = len(check_tensors(folder, manifest))
        lines = lines_of(manifest, num_bytes)
    if as_json:
        click.echo(json.dumps({**manifest.model_dump(mode="json"), "num_bytes": num_bytes}, indent=1))
        return
    for label, text in [*lines, ("folder", str(folder))]:
        click.echo(f"{label:<12} {text}")


def lines_of(manifest: Manifest, num_bytes: int) -> list[tuple[str, str]]:
    """What is worth telling, as label and text."""
    model, training, metrics = manifest.model, manifest.training, manifest.metrics
    found = [
        ("cartridge", f"{manifest.name or '(unnamed)'}, digest {manifest.digest[:12]}"),
        (
            "size",
            f"{manifest.num_slots} slots ({manifest.num_frozen} frozen), {num_bytes / 1e6:.2f} MB, {manifest.dtype}",
        ),
        ("model", told_of(model)),
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


def adapter_lines(manifest: AdapterManifest, num_bytes: int) -> list[tuple[str, str]]:
    """The same of an adapter."""
    ranks = sorted({"full" if patch.rank is None else f"rank {patch.rank}" for patch in manifest.patches})
    biases = sum(patch.has_bias for patch in manifest.patches)
    layers, modules = ({getattr(patch, name) for patch in manifest.patches} for name in ("layer", "module"))
    size = f"{', '.join(ranks)}, {biases} biases, {num_bytes / 1e6:.2f} MB, {manifest.dtype}"
    made, metrics = manifest.transmutation, manifest.metrics
    found = [
        ("adapter", f"{manifest.name or '(unnamed)'}, digest {manifest.digest[:12]}"),
        ("size", size),
        ("changes", f"{', '.join(sorted(modules))} of {len(layers)} layers"),
        ("model", told_of(manifest.model)),
    ]
    if "method" in made:
        found.append(("made by", f"{made['method']}, ridge {made.get('ridge')}, {metrics.get('seconds')} s"))
    if missed := [line["unexplained"] for line in metrics.get("layers", []) if "unexplained" in line]:
        found.append(("unexplained", f"{min(missed):.0%} to {max(missed):.0%} of what was to be added, by layer"))
    data = ", ".join(digest[:12] for digest in manifest.dataset_digests)
    found.append(("made", f"{manifest.created}, data {data}"))
    return found


def told_of(model: ModelIdentity) -> str:
    """The model in a line."""
    shapes = sorted({f"{layer.num_kv_heads} KV heads of {layer.head_size}" for layer in model.layers})
    return f"{model.model_id} ({model.architecture}, {len(model.layers)} layers, {' and '.join(shapes)})"
