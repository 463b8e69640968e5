"""`cartridges pocket card`: make a measured run ready to be bundled."""

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def command(run: Path) -> None:
    """Write the model card, the curves and the manifest of digests into RUN/model, from RUN's own files."""
    from cartridges.pocket.card import write_card

    click.echo(f"{write_card(run)} is complete; to bundle it, copy it to cartridges/pocket/weights")
