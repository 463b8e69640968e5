"""Every field that the commands on the page take, from the configurations themselves."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from serving_tables import table


def fields(default: BaseModel, preset: BaseModel, prefix: str = "") -> Iterator[list[str]]:
    """A row a field: its key, its default, what pocket's preset has instead, and what it means."""
    for name, field in type(default).model_fields.items():
        value, other = getattr(default, name), getattr(preset, name)
        if isinstance(value, BaseModel):
            yield from fields(value, other, f"{prefix}{name}.")
            continue
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        told = f" ({', '.join(f'`{choice}`' for choice in choices)})" if choices else ""
        instead = "" if other == value else shown(other)
        yield [f"`{prefix}{name}`", shown(value), instead, f"{field.description}{told}"]


def shown(value: Any) -> str:
    """As it is typed on the command line; nothing for what is not set."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def configuration() -> str:
    """One table a verb. What a build and a benchmark take of the steps is in the steps' own tables."""
    from cartridges.building import BuildConfig
    from cartridges.evals.benchmark import BenchConfig
    from cartridges.evaluation import EvaluateConfig
    from cartridges.recipe import TrainConfig
    from cartridges.serving.settings import ServeConfig
    from cartridges.study_plan import SynthesizeConfig
    from cartridges.transmutation import TransmuteConfig

    steps = ("synthesize.", "train.", "evaluate.")
    parts = []
    for title, cls in (
        ("`cartridges build`", BuildConfig),
        ("`cartridges synthesize`, in a build `synthesize.`", SynthesizeConfig),
        ("`cartridges train`, in a build `train.`", TrainConfig),
        ("Measuring, in a build `evaluate.`", EvaluateConfig),
        ("`cartridges bench`", BenchConfig),
        ("`cartridges transmute`", TransmuteConfig),
        ("`cartridges serve`", ServeConfig),
    ):
        default, preset = cls.resolve(), cls.resolve("pocket" if "pocket" in cls.presets else None)
        rows = [row for row in fields(default, preset) if not row[0].strip("`").startswith(steps)]
        head = ["field", "default", "pocket", ""]
        if not any(row[2] for row in rows):
            head, rows = [*head[:2], head[3]], [[*row[:2], row[3]] for row in rows]
        parts.append(f"## {title}\n\n{table(head, rows)}")
    return "\n\n".join(parts)
