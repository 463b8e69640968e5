"""Puts generated tables into the Markdown pages, between `<!-- begin NAME -->` and `<!-- end NAME -->`.

    python docs/build.py          # write, pictures too
    python docs/build.py --check  # exit 1 where a page differs from its result files

No number in these pages is typed: each part is made from a result file that a command of this repository wrote.
"""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from configuration_tables import configuration
from serving_tables import (
    MEASURED,
    pictures,
    serving_contexts,
    serving_cuda,
    serving_first_token,
    serving_gain,
    serving_peft,
    serving_vllm,
    table,
)

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "cartridges" / "pocket" / "weights"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REGION = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def pocket_table() -> str:
    """The summary of what pocket can do, with its targets."""
    from cartridges.pocket.card import target_table

    measured = json.loads((WEIGHTS / "eval.json").read_text())
    origin = (
        f"`{measured['command']}`, {measured['hardware']}, {measured['seconds']:.0f} s, commit {measured['commit']}"
    )
    return f"{target_table(measured)}\n\n{origin}"


def pocket_cells() -> str:
    """Every cell: kinds down, families across, one table for each context length."""
    cells = json.loads((WEIGHTS / "eval.json").read_text())["cells"]
    parts = []
    for length in dict.fromkeys(cell["length"] for cell in cells):
        chosen = [cell for cell in cells if cell["length"] == length]
        families = list(dict.fromkeys(cell["family"] for cell in chosen))
        lines = [f"| context: {length} | " + " | ".join(families) + " |", "|---" * (len(families) + 1) + "|"]
        for kind in dict.fromkeys(cell["kind"] for cell in chosen):
            row = {cell["family"]: cell for cell in chosen if cell["kind"] == kind}
            texts = [f"{row[f]['mean']:.1%} ({row[f]['num']})" if f in row else "" for f in families]
            lines.append(f"| {kind.replace('_', ' ')} | " + " | ".join(texts) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def pocket_demo() -> str:
    """What `cartridges pocket demo` printed."""
    return f"```text\n{(ROOT / 'docs' / 'results' / 'pocket_demo.txt').read_text().strip()}\n```"


def demo() -> str:
    """What `cartridges demo` printed."""
    return f"```text\n{(ROOT / 'docs' / 'results' / 'demo.txt').read_text().strip()}\n```"


def transmute_table() -> str:
    """Adapters beside a cartridge, a LoRA and reading everything, a table for each document."""
    parts = []
    measured = json.loads((ROOT / "docs" / "results" / "transmute.json").read_text())
    for family, part in measured.items():
        if "about" not in part:
            continue
        kinds, about = list(part["rows"][0]["scores"]), part["about"]
        names = {"translation": "translation (chrF)"}
        head = ["method", *(names.get(kind, kind.replace("_", " ")) for kind in kinds), "KL", "general"]
        head += ["KV bytes", "weight bytes", "build s", "tokens/s"]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for row in part["rows"]:
            label = row["label"].rpartition(", ")[0] if "weight_bytes" in row else row["label"]
            cells = ["LoRA, trained" if label == "adapter lora" else label]
            cells += [f"{row['scores'][kind]:.0%}" for kind in kinds] + [f"{row['kl_per_token']:.2f}"]
            cells += ["" if row["general"] is None else f"{row['general']:.0%}", f"{row['kv_bytes']:,}"]
            cells += [f"{row.get('weight_bytes', 0):,}", f"{row['build_s']:.0f}"]
            cells += ["" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:,.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
        num = part["rows"][0]["num"]
        told = ", ".join(f"{num[kind]} {kind.replace('_', ' ')}" for kind in kinds)
        intro = f"One {family} document of {about['num_tokens']} tokens, {about['num_conversations']} conversations; "
        intro += f"questions: {told}. Adapters at cartridge bytes and the LoRA have rank {about['rank']}."
        origin = f"`{part['command']}`, {part['hardware']}, {part['seconds']} s, commit {part['commit']}"
        parts.append("\n".join([intro, "", *lines, "", origin]))
    return "\n\n".join(parts)


def transmute_ridge() -> str:
    """Method "down" by its ridge, on validation documents."""
    part = json.loads((ROOT / "docs" / "results" / "transmute.json").read_text())["ridge"]
    lines = ["| ridge | lookup | multiple choice | KL | general |", "|---|---|---|---|---|"]
    for row in part["rows"]:
        shares = " | ".join(f"{row[name]:.0%}" for name in ("lookup", "multiple_choice"))
        mark = " (default)" if row["ridge"] == part["chosen"] else ""
        lines.append(f"| {row['ridge']:g}{mark} | {shares} | {row['kl_per_token']:.2f} | {row['general']:.0%} |")
    origin = f"`{part['command']}`, {part['hardware']}, {part['seconds']} s, commit {part['commit']}"
    return "\n".join([*lines, "", f"Two documents, {part['num_conversations']} conversations each. {origin}"])


def transmute_memory() -> str:
    """Peak memory of a process by the number of conversations."""
    part = json.loads((ROOT / "docs" / "results" / "transmute.json").read_text())["memory"]
    lines = ["| conversations | peak memory of the process | of it sums | seconds, one layer |", "|---|---|---|---|"]
    for row in part["rows"]:
        sizes = f"{row['peak_bytes'] / 1e6:,.0f} MB | {row['statistics_bytes'] / 1e6:.1f} MB"
        lines.append(f"| {row['num_conversations']:,} | {sizes} | {row['seconds']:,.0f} |")
    return "\n".join(lines)


def training_step(name: str = "training_step") -> str:
    """One step of training beside PEFT's, every setting."""
    found = json.loads((MEASURED / f"{name}.json").read_text())
    rows = []
    for row in found["rows"]:
        known = [f"{row['tokens_per_s']:,.0f}", f"{row['peak_mb']:,.0f}"] if "all" in row else ["too large", ""]
        rows.append([row["side"], row["setting"], *known])
    told = []
    for other, part in (("PEFT", found), ("a teacher in the step", found["teacher_in_step"])):
        low, high = part["speed_ratio_range"]
        speed = f"{part['speed_ratio']:.2f} times the tokens/s of {other} ({low:.2f} to {high:.2f})"
        told.append(f"{speed} at {part['memory_ratio']:.2f} times its peak memory{with_half(found['rows'], part)}")
    origin = f"`{found['command']}`, {found['hardware']}, {found['dtype']}, commit {found['commit']}"
    about = f"Model {found['model']}, {found['conversations']} conversations of {found['tokens']:,} tokens, "
    about += f"{found['slots']:,} slots, "
    about += f"{found['context']:,} tokens of context; fastest by fastest: {'; '.join(told)}. {origin}"
    return "\n\n".join([table(["side", "a step", "tokens/s", "memory of the step, MB"], rows), about])


def with_half(rows: list[dict[str, Any]], part: dict[str, Any]) -> str:
    """What packed rows reach with at most half of the other side's memory, where their fastest take more."""
    (ours, _), (side, setting) = part["fastest"].items()
    (other,) = (row for row in rows if (row["side"], row["setting"]) == (side, setting))
    lean = [row for row in rows if row["side"] == ours and "all" in row and 2 * row["peak_mb"] <= other["peak_mb"]]
    if part["memory_ratio"] <= 0.5 or not lean:
        return ""
    best = max(lean, key=lambda row: row["tokens_per_s"])
    ratios = [best[name] / other[name] for name in ("tokens_per_s", "peak_mb")]
    return f", or {ratios[0]:.2f} times at {ratios[1]:.2f} times"


def claims() -> str:
    """All claims, from the files that `cartridges claims` wrote."""
    from cartridges.evals.claims_page import claims_region

    return claims_region(ROOT / "docs" / "results" / "claims")


PARTS: dict[str, Callable[[], str]] = {
    "pocket_table": pocket_table,
    "pocket_cells": pocket_cells,
    "pocket_demo": pocket_demo,
    "demo": demo,
    "transmute_table": transmute_table,
    "transmute_ridge": transmute_ridge,
    "transmute_memory": transmute_memory,
    "training_step": training_step,
    "training_step_cuda": partial(training_step, "training_step_llama-3.1-8b"),
    "claims": claims,
    "configuration": configuration,
    "serving_peft": serving_peft,
    "serving_contexts": serving_contexts,
    "serving_first_token": serving_first_token,
    "serving_vllm": serving_vllm,
    "serving_cuda": serving_cuda,
    "serving_gain": serving_gain,
}


def built(page: Path) -> str:
    """The page's text with every region made anew."""
    return REGION.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}\n{found[3]}", page.read_text(encoding="utf-8"))


def main() -> int:
    """Write or check all pages and pictures; gives the exit code."""
    check = "--check" in sys.argv
    stale = [page for page in PAGES if built(page) != page.read_text(encoding="utf-8")]
    for page in stale:
        if not check:
            page.write_text(built(page), encoding="utf-8")
    stale += pictures(check)
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'differs from its result files' if check else 'written'}")
    return int(bool(stale) and check)


if __name__ == "__main__":
    sys.exit(main())
