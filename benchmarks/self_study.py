"""What of self-study pocket's preset takes, chosen on validation documents: chunks, temperature, general share.

Two ward corpora of the validation split, a cartridge with 20 times fewer bytes each, one thing changed at a time over
the preset as it stands; every row says what it changed. A run that was stopped goes on.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from cartridges.engine.engine import Engine
from cartridges.evals.lab import ClaimsConfig, Lab
from cartridges.model import load_model
from cartridges.provenance import provenance

RESULT = Path(__file__).parents[1] / "docs/results/self_study.json"
SEEDS = (0, 1)
FACTOR = 20


def structure(low: int, high: int) -> dict[str, Any]:
    """Pieces of so many tokens, cut where documents have their seams."""
    return {"chunk": {"kind": "structure", "min_len": low, "max_len": high}}


ARMS: dict[str, dict[str, Any]] = {
    "chunks of 100 to 600 tokens": structure(100, 600),
    "chunks of 30 to 120 tokens": structure(30, 120),
    "chunks of 60 to 240 tokens": structure(60, 240),
    "chunks of 300 to 1200 tokens": structure(300, 1200),
    "8 conversations on a chunk": {"conversations_per_chunk": 8},
    "messages at temperature 0.7": {"question": {"temperature": 0.7, "max_new_tokens": 96}},
    "5% general conversations": {"general_share": 0.05},
    "3,072 conversations, 1,200 steps": {"num_conversations": 3072, "max_steps": 1200},
    "6,144 conversations, 2,400 steps": {"num_conversations": 6144, "max_steps": 2400},
}
TRAINED = ("max_steps",)  # fields of the training, all others are of self-study


def main() -> None:
    """Measure and write, a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("self-study-runs"), help="where conversations and slots go")
    parser.add_argument("--only", nargs="*", choices=ARMS, help="these rows; others stay as they were")
    args = parser.parse_args()
    began = time.perf_counter()
    engine = Engine(load_model("pocket", "cpu"))
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": []}
    rows = {row["label"]: row for row in kept["rows"]}
    for label in args.only or ARMS:
        rows[label] = {"label": label, "values": ARMS[label], **arm(engine, args.runs, ARMS[label])}
        print(json.dumps(rows[label]), file=sys.stderr, flush=True)
        told = {"rows": [rows[name] for name in ARMS if name in rows], "seeds": SEEDS, "factor": FACTOR}
        told |= {"seconds": round(time.perf_counter() - began), **provenance()}
        RESULT.write_text(json.dumps(told, indent=1) + "\n")


def arm(engine: Engine, runs: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Accuracy on each corpus, of the cartridge and of the full context, and what making it took."""
    study = {name: value for name, value in values.items() if name not in TRAINED}
    training = {name: value for name, value in values.items() if name in TRAINED}
    accuracy, full, losses, seconds = [], [], [], []
    for seed in SEEDS:
        lab = Lab(engine, ClaimsConfig(seed=seed), runs / f"seed-{seed}")
        task = lab.task(split="validation")
        num_slots = lab.slots_for(task.corpus, FACTOR)
        data = lab.study(task.corpus, **study)
        made = lab.train(data, task.corpus, num_slots, **training)
        record = lab.measure(task, lab.answers(made, data), f"cartridge-{made.digest[:8]}", "cartridge")
        accuracy.append(round(record.accuracy, 4))
        full.append(round(lab.run(task, "full_context", "full context", num_slots).accuracy, 4))
        losses.append(round(made.manifest.metrics["heldout_loss"], 4))
        seconds.append(round(record.row()["build_s"], 1))
    mean = round(sum(accuracy) / len(accuracy), 4)
    return {"mean": mean, "accuracy": accuracy, "full_context": full, "heldout_loss": losses, "build_s": seconds}


if __name__ == "__main__":
    main()
