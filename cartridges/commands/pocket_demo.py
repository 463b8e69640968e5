"""`cartridges pocket demo`: the pocket model reads a document it has never seen, and answers."""

from pathlib import Path

import click

from cartridges.pocket import WEIGHTS

KINDS = (
    "lookup",
    "reverse",
    "two_hop",
    "comparison",
    "count",
    "multiple_choice",
    "json",
    "translation",
    "unanswerable",
)


@click.command()
@click.option("--family", default="ward", show_default=True, help="ward, firm, code, tongue or haystack.")
@click.option("--seed", type=int, default=7, show_default=True, help="Which document of the test split.")
@click.option("--size", type=click.IntRange(1, 20), default=3, show_default=True, help="How much the document tells.")
@click.option(
    "--model", type=click.Path(path_type=Path), default=WEIGHTS, help="Model folder; default the bundled one."
)
@click.option("--ask", "asked", multiple=True, help="A question of your own; may be given several times.")
def command(family: str, seed: int, size: int, model: Path, asked: tuple[str, ...]) -> None:
    """Read a document the model has never seen, ask it questions, and check its answers."""
    from cartridges.pocket.families import make_context
    from cartridges.pocket.questions import draw
    from cartridges.rng import rng_of

    context = make_context(family, "test", seed, size=size)

    from rich.console import Console
    from rich.markup import escape
    from rich.panel import Panel

    from cartridges.engine.engine import Engine
    from cartridges.model import load_model
    from cartridges.pocket.generate import generate
    from cartridges.pocket.model import check_files
    from cartridges.pocket.scoring import score
    from cartridges.pocket.seeds import SEED_PROMPTS

    console = Console()
    check_files(model)
    engine = Engine(load_model(model))
    num_tokens = len(engine.model.ids(context.text))
    console.print(
        Panel(escape(context.text), title=f"a document of the test split, {num_tokens} tokens", title_align="left")
    )
    if asked:
        for text, reply in zip(asked, generate(engine, context.text, asked), strict=True):
            console.print(f"[bold]{escape(text)}[/]\n  {escape(reply)}")
        return
    drawn = [draw(rng_of("demo", seed, kind), context, kind) for kind in KINDS]
    questions = [question for question in drawn if question]
    replies = generate(engine, context.text, [question.text for question in questions])
    num_right = 0
    for question, reply in zip(questions, replies, strict=True):
        right = score(question, reply) >= 0.999
        num_right += right
        mark = "[green]right[/]" if right else f"[red]wrong[/], expected: {escape(question.answer)}"
        console.print(f"[bold]{escape(question.text)}[/]\n  {escape(reply)}  ({mark})")
    prompts = [prompts[0] for prompts in SEED_PROMPTS.values()]
    console.print("\nAnd it asks, given a seed prompt of each kind:")
    for kind, message in zip(SEED_PROMPTS, generate(engine, context.text, prompts), strict=True):
        console.print(f"  {kind}: [bold]{escape(message)}[/]")
    console.print(f"\n{num_right} of {len(questions)} answers right. All of them: cartridges pocket eval")
