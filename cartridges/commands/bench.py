"""`cartridges bench`: a benchmark, several methods at equal bytes."""

from pathlib import Path

import click


@click.command()
@click.argument("task")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--model", default="pocket", show_default=True, help="pocket, a folder, or a Hugging Face name.")
@click.option("--methods", help="no_context,bm25,cartridge,...; the first is what the others are compared with.")
@click.option("--slots", type=click.IntRange(2), help="The budget, in keys and values of so many tokens.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; runs/bench-TASK by default.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def command(
    task: str,
    overrides: tuple[str, ...],
    model: str,
    methods: str | None,
    slots: int | None,
    out: Path | None,
    device: str,
) -> None:
    """Measure methods on TASK: pocket, pocket_general, longhealth, mtob, qasper, ruler.

    KEY=VALUE sets an option of the task (task.path=benchmark_v5.json) or a field of study and training
    (train.max_steps=400). The same command goes on where it was stopped.
    """
    from cartridges.evals.benchmark import BenchConfig, bench, check_methods
    from cartridges.evals.task import task_named
    from cartridges.model import load_model

    told = [*overrides, *([f"slots={slots}"] if slots else [])]
    if methods is not None:
        told.append(f"methods=[{methods}]")
    asked = BenchConfig.resolve("default", None, told)
    check_methods(asked.methods)
    loaded_task = task_named(task, **asked.task)
    from cartridges.engine.engine import Engine

    loaded = load_model(model, device)
    config = BenchConfig.resolve(loaded.profile, None, told)
    click.echo(f"{loaded_task.name}: {len(loaded_task.items)} questions, {loaded_task.corpus.summary()}")
    finding = bench(loaded_task, Engine(loaded), config, out or Path("runs") / f"bench-{task}", click.echo)
    click.echo(
        f"\n{'method':<16}{finding.y_label:>10}  {'95%':<15}{'KV bytes':>14}{'build s':>10}  minus the first (95%)"
    )
    for row in finding.rows:
        low, high = row["ci95"]
        gap, below, above = row["difference"]
        click.echo(
            f"{row['method']:<16}{row['accuracy']:>10.3f}  {f'{low:.3f}-{high:.3f}':<15}{row['kv_bytes']:>14,}"
            f"{row['build_s']:>10,.1f}  {gap:+.3f} ({below:+.3f} to {above:+.3f})"
        )
    for note in finding.notes:
        click.echo(f"note: {note}")
    click.echo(f"published: {finding.published}")
