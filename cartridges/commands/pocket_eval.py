"""`cartridges pocket eval`: the table of what the pocket model can do, on documents it has never seen."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cartridges.errors import InputError
from cartridges.pocket import WEIGHTS

if TYPE_CHECKING:
    from cartridges.pocket.evaluate import Report


@click.command()
@click.option(
    "--model", type=click.Path(path_type=Path), default=WEIGHTS, help="Model folder; default the bundled one."
)
@click.option("--split", default="test", show_default=True, help="Split whose names no training document used.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--scale",
    type=click.FloatRange(0, 10, min_open=True),
    default=1.0,
    show_default=True,
    help="Fewer or more questions.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all cells there.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def command(model: Path, split: str, seed: int, scale: float, json_path: Path | None, device: str) -> None:
    """Measure the pocket model: accuracy with 95% intervals by family, kind and context length."""
    if json_path and (json_path.is_dir() or not json_path.parent.is_dir()):
        raise InputError(f"cannot write {json_path}: give a file in a folder that exists")
    from cartridges.engine.engine import Engine
    from cartridges.model import load_model
    from cartridges.pocket.evaluate import check_split, evaluate
    from cartridges.pocket.model import check_files
    from cartridges.provenance import provenance
    from cartridges.run_folder import file_digest, write_json

    check_split(split)
    check_files(model)
    engine = Engine(load_model(model, device))
    started = time.monotonic()
    report = evaluate(engine, split, seed, scale)
    seconds = time.monotonic() - started
    show(report)
    if json_path:
        about = {
            "weights_sha256": file_digest(model / "model.safetensors"),
            "split": split,
            "seed": seed,
            "scale": scale,
            "seconds": round(seconds, 1),
            **provenance(),
        }
        write_json(json_path, {**about, **report.to_json()})


def show(report: "Report") -> None:
    """Print the summary with its targets, then accuracy by family and kind."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="Pocket on held-out documents, greedy", title_justify="left")
    for column in ("", "at least", "measured", "95% interval", "questions"):
        table.add_column(column, justify="left" if not column else "right")
    for line in report.lines():
        reached = "green" if line.mean >= line.least else "red"
        table.add_row(
            line.name,
            f"{line.least:.0%}",
            f"[{reached}]{line.mean:.1%}[/]",
            f"{line.low:.1%} - {line.high:.1%}",
            str(line.num),
        )
    console.print(table)
    for length, kinds in report.kinds_by_length().items():
        table = Table(title=f"context: {length}", title_justify="left")
        table.add_column("kind")
        for family in report.families:
            table.add_column(family, justify="right")
        for kind in kinds:
            cells = [report.cells.get((family, kind, length)) for family in report.families]
            table.add_row(kind, *(cell.text if cell else "" for cell in cells))
        console.print(table)
