"""The model card of a training run: its command, data, curves and measured table, beside the weights.

Every number is read from the run's `eval.json`, `metrics.jsonl`, `config.yaml` and `manifest.json`; none is typed.
What its `notes.md` says, where there is one, goes into the card as it stands.
"""

import json
import shlex
import shutil
from pathlib import Path
from statistics import mean, median
from typing import Any

from cartridges.errors import FormatError, InputError
from cartridges.log import read_metrics
from cartridges.pocket import MANIFEST
from cartridges.pocket.batches import TEXT_WEIGHT
from cartridges.pocket.knowledge import general_facts
from cartridges.pocket.recipe import PocketConfig
from cartridges.run_folder import file_digest, write_json, write_whole

NUM_MESSAGES = 1000  # of the line on coverage, at scale 1
LOADED = {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}

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

{train_command}: Qwen3 architecture, {shape}. {num_steps} steps of {phases}; {num_tokens:.1f} million tokens. On
{train_hardware}, {rates} (medians of tokens/s), which makes {minutes:.0f} minutes. Muon for the matrices, AdamW for
embeddings and norms; loss on answers, more of it on the tokens that decide, {text_weight} of it on the other text.
Positions up to {window} are allowed; more than {longest} tokens were never trained or measured.
{notes}
![training curves](curves.png)

Data: documents of five families (ward, firm, code, tongue, haystack) made by `cartridges/pocket/families/`, with
questions by `questions.py` and seed prompts by `seeds.py`; nothing was collected. The tokenizer is trained on the same.
"""


def write_card(run: Path) -> Path:
    """Put README.md, eval.json, metrics.jsonl, curves.png and a manifest of digests into `run/model`; gives its path.

    Needs a finished run measured by `cartridges pocket eval --model RUN/model --json RUN/eval.json`.
    """
    model = run / "model"
    again = f"train {run} to the end and measure it: cartridges pocket eval --model {model} --json {run / 'eval.json'}"
    needed = [run / name for name in ("eval.json", "metrics.jsonl", "curves.png", MANIFEST)]
    for path in (model / "model.safetensors", *needed):
        if not path.exists():
            raise InputError(f"{path} is missing; {again}")
    try:
        config, measured, origin = read_run(run)
        digests = {path.name: file_digest(path) for path in sorted(model.iterdir()) if path.name in LOADED}
        if measured["weights_sha256"] != digests["model.safetensors"] or measured["split"] != "test":
            raise InputError(f"{run / 'eval.json'} is not the table of these weights on the test split; {again}")
        text = CARD.format(**figures(run, config, measured, origin))
    except (LookupError, TypeError, ValueError) as error:
        raise FormatError(f"a file of {run} is damaged ({type(error).__name__}: {error}); {again}") from error
    for name in ("eval.json", "curves.png", "metrics.jsonl"):
        shutil.copy(run / name, model / name)
    trained = {key: value for key, value in origin.items() if key != "command"}  # which may hold somebody's paths
    about = {"sha256": digests, "config": config.model_dump(), "trained": trained}
    write_json(model / MANIFEST, about)
    write_whole(model / "README.md", text.encode())
    return model


def read_run(run: Path) -> tuple[PocketConfig, dict[str, Any], dict[str, Any]]:
    """The configuration of a run, its measurement and its origin."""
    measured = json.loads((run / "eval.json").read_text(encoding="utf-8"))
    origin = json.loads((run / MANIFEST).read_text(encoding="utf-8"))
    return PocketConfig.load(run / "config.yaml"), measured, origin


def figures(run: Path, config: PocketConfig, measured: dict[str, Any], origin: dict[str, Any]) -> dict[str, object]:
    """The values for the card's template; what the training did is counted from its metrics."""
    notes = run / "notes.md"
    speeds: dict[int, list[float]] = {}
    num_steps: dict[int, int] = {}
    num_tokens, seconds, before = 0.0, 0.0, 0
    for row in read_metrics(run / "metrics.jsonl"):
        for length, rows in rows_of(config, before, row["step"]).items():
            if count := row.get(f"steps_at_{length}"):
                speed = row[f"tokens_per_s_at_{length}"]
                speeds.setdefault(length, []).append(speed)
                num_steps[length] = num_steps.get(length, 0) + count
                num_tokens += count * rows * length
                seconds += count * rows * length / speed
        before = row["step"]
    return {
        "parameters": origin["num_parameters"] / 1e6,
        "num_general": len(general_facts()),
        "split": measured["split"],
        "command": measured["command"],
        "seconds": measured["seconds"],
        "hardware": measured["hardware"],
        "commit": measured["commit"],
        "table": target_table(measured),
        "train_command": "In stages, as told below" if notes.exists() else f"`{train_command(config)}`",
        "notes": f"\n{notes.read_text(encoding='utf-8').strip()}\n" if notes.exists() else "",
        "shape": f"{config.num_layers} layers, width {config.hidden_size}, {config.num_heads} query and "
        f"{config.num_kv_heads} KV heads of {config.head_size}, MLP {config.mlp_size}, tied embeddings, "
        f"{config.vocab_size} tokens of byte-level BPE",
        "num_steps": sum(num_steps.values()),
        "num_tokens": num_tokens / 1e6,
        "minutes": seconds / 60,
        "window": config.window,
        "longest": max(num_steps),
        "rates": ", ".join(f"{median(speeds[length]):.0f} in rows of {length}" for length in sorted(speeds)),
        "train_hardware": origin["hardware"],
        "text_weight": TEXT_WEIGHT,
        "phases": ", ".join(f"{count} x {length} tokens" for length, count in sorted(num_steps.items())),
    }


def rows_of(config: PocketConfig, start: int, stop: int) -> dict[int, float]:
    """The rows of each length that the steps `start` to `stop` may have had; their mean where phases differ in them."""
    found: dict[int, list[int]] = {}
    for step in range(start, stop):
        for shape in config.phase_at(step).shapes:
            found.setdefault(shape.length, []).append(shape.rows)
    return {length: mean(rows) for length, rows in found.items()}


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
    if measured["scale"] != 1:
        num_messages = NUM_MESSAGES * measured["scale"]
        lines += [
            "",
            f"Asked at scale {measured['scale']}: the facts touched are those of {num_messages:.0f} messages.",
        ]
    return "\n".join(lines)
