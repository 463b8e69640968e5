"""The model card of a training run: its command, data, curves and measured table, beside the weights.

Every number is read from the run's `eval.json`, `metrics.jsonl`, `config.yaml` and `manifest.json`; none is typed.
What its `notes.md` says, where there is one, goes into the card as it stands.
"""

import json
import shlex
import shutil
from pathlib import Path
from statistics import median

from cartridges.errors import InputError
from cartridges.log import read_metrics
from cartridges.pocket import MANIFEST
from cartridges.pocket.recipe import PocketConfig

CARD = """---
license: apache-2.0
pipeline_tag: text-generation
tags: [cartridges, synthetic]
---

# Pocket

A language model of {parameters:.1f} million parameters that lives in a small generated world: it answers questions
about documents it has never seen, says when they do not tell, knows a fixed table of {num_general} general facts, and
writes the questions of self-study. It is for tests and for reproducing claims about cartridges on a laptop; it knows
nothing of the real world beyond that table.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from cartridges.pocket import WEIGHTS

model, tokenizer = AutoModelForCausalLM.from_pretrained(WEIGHTS), AutoTokenizer.from_pretrained(WEIGHTS)
```

## What it can do

Held-out documents ({split} split: no name occurs in a training document), greedy, 95% intervals, from
`{command}` in {seconds:.0f} s on {hardware}, commit {commit}. All cells are in `eval.json`.

{table}

## How it was made

`{train_command}`: Qwen3 architecture, {shape}; {num_steps} steps, {num_tokens:.1f} million tokens. On
{train_hardware}, {rates} (medians of tokens/s), which makes {minutes:.0f} minutes. Muon for the matrices, AdamW for
embeddings and norms; loss on answers, more of it on the tokens that decide, {text_weight} of it on the other text.
{notes}
![training curves](curves.png)

Data: documents of five families (ward, firm, code, tongue, haystack) made by `cartridges/pocket/families/`, with
questions by `questions.py` and seed prompts by `seeds.py`; nothing was collected. Row lengths and steps: {phases}.
"""


def write_card(run: Path) -> Path:
    """Put README.md, eval.json, metrics.jsonl, curves.png and a manifest of digests into `run/model`; gives its path.

    Needs a finished run measured by `cartridges pocket eval --model RUN/model --json RUN/eval.json`.
    """
    model = run / "model"
    needed = [
        model / "model.safetensors",
        *(run / name for name in ("eval.json", "metrics.jsonl", "curves.png", "manifest.json")),
    ]
    for path in needed:
        if not path.exists():
            raise InputError(
                f"{path} is missing; train {run} to the end and measure it with --json {run / 'eval.json'}"
            )
    (model / "README.md").write_text(CARD.format(**figures(run)))
    for name in ("eval.json", "curves.png", "metrics.jsonl"):
        shutil.copy(run / name, model / name)
    from cartridges.pocket.model import file_digest

    names = sorted(path.name for path in model.iterdir() if path.suffix in (".safetensors", ".json", ".jinja"))
    digests = {name: file_digest(model / name) for name in names if name not in (MANIFEST, "eval.json")}
    config = PocketConfig.load(run / "config.yaml")
    (model / MANIFEST).write_text(json.dumps({"sha256": digests, "config": config.model_dump()}, indent=1) + "\n")
    return model


def figures(run: Path) -> dict[str, object]:
    """The values for the card's template, from the run's files."""
    from cartridges.pocket.batches import TEXT_WEIGHT
    from cartridges.pocket.knowledge import general_facts

    config = PocketConfig.load(run / "config.yaml")
    measured = json.loads((run / "eval.json").read_text())
    origin = json.loads((run / "manifest.json").read_text())
    rows = read_metrics(run / "metrics.jsonl")
    notes = run / "notes.md"
    num_tokens = sum(phase.steps * phase.rows * phase.length for phase in config.phases)
    speeds: dict[int, list[float]] = {}
    for row in rows:
        speeds.setdefault(row["length"], []).append(row["tokens_per_s"])
    seconds = sum(phase.steps * phase.rows * phase.length / median(speeds[phase.length]) for phase in config.phases)
    return {
        "parameters": origin["num_parameters"] / 1e6,
        "num_general": len(general_facts()),
        "split": measured["split"],
        "command": measured["command"],
        "seconds": measured["seconds"],
        "hardware": measured["hardware"],
        "commit": measured["commit"],
        "table": target_table(measured),
        "train_command": train_command(config),
        "notes": f"\n{notes.read_text().strip()}\n" if notes.exists() else "",
        "shape": f"{config.num_layers} layers, width {config.hidden_size}, {config.num_heads} query and "
        f"{config.num_kv_heads} KV heads of {config.head_size}, MLP {config.mlp_size}, tied embeddings, "
        f"{config.vocab_size} tokens of byte-level BPE",
        "num_steps": config.num_steps,
        "num_tokens": num_tokens / 1e6,
        "minutes": seconds / 60,
        "rates": ", ".join(f"{median(speeds[length]):.0f} in rows of {length}" for length in sorted(speeds)),
        "train_hardware": origin["hardware"],
        "text_weight": TEXT_WEIGHT,
        "phases": ", ".join(f"{phase.length} tokens x {phase.steps}" for phase in config.phases),
    }


def train_command(config: PocketConfig) -> str:
    """The command that gives this configuration; one that is no preset is told from the nearest, `small`."""
    presets = [name for name in PocketConfig.presets if PocketConfig.resolve(name) == config]
    if presets:
        return f"cartridges pocket train OUT --preset {presets[0]}"
    small = PocketConfig.resolve("small").model_dump()
    changed = {key: value for key, value in config.model_dump().items() if value != small[key]}
    overrides = " ".join(shlex.quote(f"{key}={json.dumps(value)}") for key, value in changed.items())
    return f"cartridges pocket train OUT {overrides}"


def target_table(measured: dict) -> str:
    """The summary lines as Markdown; a line that is not reached says so."""
    lines = ["| | at least | measured | 95% interval | questions |", "|---|---|---|---|---|"]
    for line in measured["targets"]:
        missed = "" if line["mean"] >= line["least"] else " (not reached)"
        lines.append(
            f"| {line['name']} | {line['least']:.0%} | {line['mean']:.1%}{missed} | "
            f"{line['low']:.1%} - {line['high']:.1%} | {line['num']} |"
        )
    return "\n".join(lines)
