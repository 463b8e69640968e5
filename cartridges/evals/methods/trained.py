"""Methods with slots: trained by distillation, on the conversations' tokens or on the corpus' text; and untrained."""

from cartridges.evals.method import Answerer, Workshop
from cartridges.initialization import initialize
from cartridges.recipe import TrainConfig
from cartridges.rows import RowPlan
from cartridges.synthesis import study_seconds
from cartridges.training import train


def cartridge(workshop: Workshop) -> Answerer:
    """Self-study by context distillation (arXiv 2506.06266, section 4)."""
    return trained(workshop, "distill")


def next_token(workshop: Workshop) -> Answerer:
    """The same conversations with hard labels: cross-entropy of their own tokens."""
    return trained(workshop, "next_token")


def raw_text(workshop: Workshop) -> Answerer:
    """Next-token training on the corpus itself, for as many steps as the others."""
    return trained(workshop, "text")


def untrained(workshop: Workshop) -> Answerer:
    """The slots as they are initialised from the corpus' first tokens: a truncated context, as keys and values."""
    return Answerer(
        cartridge=initialize(
            workshop.engine.model,
            workshop.corpus,
            workshop.num_slots,
            TrainConfig.resolve().initialize,
            workshop.train.frozen_slots,
        )
    )


def trained(workshop: Workshop, objective: str) -> Answerer:
    """Slots trained for an objective, in a run folder of their own."""
    model, corpus = workshop.engine.model, workshop.corpus
    values = {**workshop.train.model_dump(), "slots": workshop.num_slots}
    dataset = workshop.study() if objective != "text" or not workshop.train.max_steps else None
    if objective == "text" and dataset is not None:  # an epoch of the text is a few rows
        values["max_steps"] = RowPlan.of(dataset, model, corpus, TrainConfig.resolve(values=values)).num_steps
        dataset = None
    config = TrainConfig.resolve(values={**values, "objective": objective})
    folder = workshop.folder / f"{objective}-{workshop.num_slots}"
    made = train(dataset, model, corpus, config, folder, name=f"{objective}-{config.slots}")
    seconds = float(made.manifest.metrics["seconds"])
    if dataset is not None:
        seconds += study_seconds(dataset)
    return Answerer(cartridge=made, build_s=seconds)
