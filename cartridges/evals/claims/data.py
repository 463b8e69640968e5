"""The synthetic data itself: answerable, right, made up, repeated, covering; by temperature, kind and filter."""

from typing import Any

from cartridges.evals.finding import Check, Finding
from cartridges.evals.lab import Lab
from cartridges.evals.quality import quality
from cartridges.evals.tasks.pocket import paths_of, pocket_context
from cartridges.study_plan import SynthesizeConfig

TITLE = "How good the synthetic conversations are"
PUBLISHED = (
    "Cartridges at Scale (2606.04557): 9% of the numbers in synthetic answers were fabricated; 2606.32002: questions "
    "cluster, coverage saturates early"
)


def data(lab: Lab) -> Finding:
    """Conversations about ward documents, judged against what the documents state."""
    finding = Finding("data", TITLE, PUBLISHED, x_label="temperature of speaker A", y_label="facts covered")
    task = lab.task()
    context = pocket_context("ward", "test", lab.config.seed, lab.config.num_tokens)
    num = max(64, lab.config.num_conversations // 2)
    usual = SynthesizeConfig.resolve("pocket").question
    label = f"all kinds of seed prompts, temperature {usual.temperature}, top_p {usual.top_p}"
    arms: dict[str, tuple[float | None, dict[str, Any]]] = {label: (usual.temperature, {})}
    for temperature in sorted({0.3, 0.6, 1.0, 1.3} - {usual.temperature}):
        arms[f"temperature {temperature}"] = (
            temperature,
            {"question": {"temperature": temperature, "max_new_tokens": 96}},
        )
    arms["all tokens drawn from (top_p 1)"] = (None, {"question": {"top_p": 1.0}})
    arms["messages bound to no passage"] = (None, {"passage_len": 0})
    for label, values in filter_arms().items():
        arms[label] = (None, {"filters": values})
    for label, (temperature, values) in arms.items():
        made = lab.study(task.corpus, num_conversations=num, seed_kinds=None, general_share=0.0, **values)
        found = quality(made.conversations, task.corpus, context, paths_of(context))
        by_kind = found.pop("by_kind")
        dropped = sum(made.manifest.get("dropped", {}).values())
        finding.rows.append({"label": label, **found, "dropped": dropped})
        if temperature is not None:
            finding.curves.setdefault("facts covered", []).append([temperature, *[found["facts_covered"]] * 3])
        if label.startswith("all kinds"):
            finding.rows += [{"label": f"of it, {kind}", **ratios} for kind, ratios in by_kind.items()]
            finding.checks.append(Check("numbers made up", 0.09, found["fabricated_ratio"], at_least=False))
    for points in finding.curves.values():
        points.sort()
    finding.notes.append(
        "answerable: the message can be read back to facts of its document by the world's own grammar; a message in "
        "other words counts as not answerable. Right: among the answerable ones"
    )
    finding.about = {"task": task.name, "num_conversations": num}
    return finding


def filter_arms() -> dict[str, dict[str, Any]]:
    """The filters that can be left out."""
    return {
        "duplicates kept": {"duplicates": False},
        "cut-off and malformed kept": {"cut_off": False, "malformed": False},
    }
