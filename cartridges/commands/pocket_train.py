"""`cartridges pocket train`: begin a run in a folder, or go on with the one that is there."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from cartridges.errors import InputError, InterruptedRun

DEFAULT_PRESET = "small"
MOST_WORKERS = 15  # as many as the bundled weights had beside an H200


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--preset", help=f"tiny, small, bundled or base; a new run's default is {DEFAULT_PRESET}.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--workers",
    type=click.IntRange(0, 256),
    help=f"Processes that make batches; default none on a CPU, else one fewer than cores, at most {MOST_WORKERS}.",
)
def command(out: Path, overrides: tuple[str, ...], preset: str | None, device: str, workers: int | None) -> None:
    """Train the pocket model from nothing into the folder OUT, or go on with the run that OUT holds.

    KEY=VALUE sets a field of the configuration, such as seed=1 or muon_lr=0.01. A run stopped by Ctrl-C, or in any
    other way, goes on with `cartridges pocket train OUT`.
    """
    from cartridges.pocket.recipe import PocketConfig

    if "=" in out.name and not out.exists():
        raise InputError(f"given {str(out)!r} as the folder OUT; the folder comes first: pocket train OUT {out}")
    config_path = out / "config.yaml"
    wanted = preset is not None or overrides
    config = PocketConfig.resolve(preset or DEFAULT_PRESET, None, overrides) if wanted else None
    if config is None and not config_path.exists():
        config = PocketConfig.resolve(DEFAULT_PRESET)
    try:
        with terminated_is_interrupted():
            from cartridges.pocket.train import open_run, train

            with open_run(out, config, None if device == "auto" else device) as run:
                if run.is_finished:
                    click.echo(f"{out} is finished: {run.step} of {run.config.num_steps} steps.")
                model = train(run, workers_beside(run.device.type) if workers is None else workers)
    except KeyboardInterrupt:
        from cartridges.run_folder import resume_command

        go_on = resume_command("pocket train", out) if config_path.exists() else "the same command"
        raise InterruptedRun(f"stopped; go on with: {go_on}") from None
    click.echo(f"The model is in {model}. Measure it with: cartridges pocket eval --model {model}")


def workers_beside(device: str) -> int:
    """How many processes keep a device in batches that does not calculate with the cores itself."""
    from cartridges.provenance import cores

    return 0 if device == "cpu" else min(cores() - 1, MOST_WORKERS)


@contextmanager
def terminated_is_interrupted() -> Iterator[None]:
    """Meanwhile SIGTERM does what Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
