"""Puts generated tables into the Markdown pages, between `<!-- begin NAME -->` and `<!-- end NAME -->`.

    python docs/build.py          # write
    python docs/build.py --check  # exit 1 where a page differs from its result files

No number in these pages is typed: each part is made from a result file that a command of this repository wrote.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

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


PARTS: dict[str, Callable[[], str]] = {
    "pocket_table": pocket_table,
    "pocket_cells": pocket_cells,
    "pocket_demo": pocket_demo,
    "demo": demo,
}


def built(page: Path) -> str:
    """The page's text with every region made anew."""
    return REGION.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}\n{found[3]}", page.read_text(encoding="utf-8"))


def main() -> int:
    """Write or check all pages; gives the exit code."""
    stale = [page for page in PAGES if built(page) != page.read_text(encoding="utf-8")]
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'differs from its result files' if '--check' in sys.argv else 'written'}")
        if "--check" not in sys.argv:
            page.write_text(built(page), encoding="utf-8")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
