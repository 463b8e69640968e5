"""`cartridges claims`: the field's claims about cartridges, measured on the bundled model."""

from pathlib import Path

import click

from cartridges.errors import InputError


@click.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--only", "names", multiple=True, help="A claim by its name; may be repeated. All by default.")
@click.option("--preset", default="quick", show_default=True, help="quick, full, or smoke to try the machinery.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs"), show_default=True, help="Where to write.")
@click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs/claims"), show_default=True, help="Run folder."
)
@click.option("--model", default="pocket", show_default=True, help="pocket, or a folder with a model of its kind.")
def command(overrides: tuple[str, ...], names: tuple[str, ...], preset: str, out: Path, runs: Path, model: str) -> None:
    """Measure claims, write them to OUT/results/claims and the page OUT/claims.md.

    KEY=VALUE sets a field of the preset, such as steps=2000. The same command goes on where it was stopped.
    """
    from cartridges.evals.claiming import check_names, measure_claims
    from cartridges.evals.lab import ClaimsConfig, Lab

    check_names(names)
    config = ClaimsConfig.resolve(preset, None, overrides)
    if out.exists() and not out.is_dir():
        raise InputError(f"given --out {out}, expected a folder; it is a file")
    from cartridges.engine.engine import Engine
    from cartridges.model import load_model

    lab = Lab(Engine(load_model(model)), config, runs)
    findings = measure_claims(lab, out, names, preset, click.echo)
    for finding in findings:
        click.echo(f"\n{finding.title} ({finding.seconds:,.0f} s)")
        for check in finding.checks:
            here = "-" if check.measured is None else f"{check.measured:.2f}"
            click.echo(f"  {'holds' if check.holds else 'FAILS':<6} {check.what}: {here}, expected {check.expected}")
    click.echo(f"\nThe page is {out / 'claims.md'}, its figures are in {out / 'results' / 'claims'}")
