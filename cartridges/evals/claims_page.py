"""The page of claims: made from findings alone, so that no figure on it is typed; and its pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cartridges.errors import InputError
from cartridges.evals.finding import Finding
from cartridges.report_figures import LIGHT, add_legend, new_figure, png_of
from cartridges.report_table import DASH, human_bytes

ORDER = "capacity objectives recipe initializers long_corpus composition off_corpus scaling cost data".split()
HIDDEN = {"method", "commit", "ci95", "num", "factor"}
TOLD = {"num_empty": "empty replies", "num_cut": "replies cut off"}
BEGIN, END = "<!-- begin claims -->\n", "<!-- end claims -->\n"
HEAD = """\
# The field's claims, measured on a laptop

What is claimed of cartridges, each claim with its published number beside ours. All of it is made by one command, on
the bundled model and documents of the test split that it has never seen (for the recipe, of the validation split):

```sh
cartridges claims                  # all, preset quick
cartridges claims --only capacity  # one
cartridges claims --preset full    # wider tables, narrower intervals, a night
```

Every figure below is in a file of `results/claims/`, with the command, commit, versions and hardware that made it; the
page is generated from these files. Accuracies are with 95% intervals over questions (Wilson's); differences (Agresti
and Min's) and ratios (Bayesian bootstrap) are paired, over the same questions. Intervals do not cover other corpora,
seeds or models. A lead whose interval reaches 0 may be chance, and does not hold. Slots are trained as pocket's preset
has it, in 300 steps, on 1,024 conversations of two kinds of seed prompts unless a row says otherwise; that is much less
than the preset's own study. The page is of one commit, which every table names; what changed in the preset since is in
the log.

## Where the laptop world stops being evidence

- The model has four million parameters, the documents are generated: what holds between methods here may not hold for
  large models. On it, slots that begin at random do no worse than corpus tokens; on 3B models they do much worse.
- Its own full-context reading is imperfect, so ratios to full context can exceed 1: a cartridge is trained on short
  pieces, which the model reads better than everything at once.
- Questions are of forms that the model writes itself in self-study. Real users ask in other words.
- Seconds are of one small computer. They show the shape of the cost, and not what a GPU costs.
- One seed of corpus and training unless a table says otherwise. Two trainings that should be alike can differ by more
  than the intervals over questions say, so a small difference between two rows is no finding.

## Where a line fails

- **Cartridges behind the full context.** Up to 20x they are ahead of it. With a handful of slots what is missing is
  study: few slots learn slowly, and the preset's rates are low, to spare general knowledge (see the log). In the table
  of the recipe three times those rates learn more in these 300 steps.
- **LoRA beside a cartridge.** At equal bytes and steps low-rank changes of all layers learn look-ups of one corpus
  nearly as well. They are part of the weights: a batch cannot mix corpora without a kernel for it, and they are not
  composed.
- **Distillation beside next-token training.** Pocket as a teacher is nearly certain of each token, so its distributions
  say little that its words do not. Published gains are of large models.
- **First corpus tokens beside random slots.** Random ones are ahead here; earlier weights and rates gave no lead to
  either (see the log). Pocket takes a learning rate far above the published one, which leaves little of any start: at
  the preset's rates attention matching ends with more right replies but not with a lower loss, at the published rate it
  saves most of the steps.
- **Eviction and attention matching alone.** Pocket reads by copying: every token of a name or a number must be there.
  Few questions need just the tokens that are kept.
- **Composed cartridges.** Each alone answers its own questions; together, those that were trained apart hide each
  other's text, and turning keys to their old distance or keeping one sink is no help that these questions could show.
- **General knowledge.** The preset's rates move the slots far; general conversations in the study bring back part of
  what that costs.
- **Saying that the text does not tell.** No target, but a loss: the preset leaves such answers out of the study
  (`synthesize.filters.untold`), which helps look-ups, and its cartridges seldom say so. The log has both ways.
- **Many windows.** Conversations and steps grow less than the windows, so that each document of a long corpus is
  studied less. Retrieval has no such cost, and is as good there for look-ups.

"""


def load_all(folder: Path) -> list[Finding]:
    """The findings in a folder, in the order of the page. Raises InputError where there are none, FormatError."""
    found = [Finding.load(path) for path in sorted(Path(folder).glob("*.json"))]
    if not found:
        raise InputError(f"no findings in {folder}; measure with: cartridges claims")
    return sorted(found, key=lambda finding: (ORDER.index(finding.name) if finding.name in ORDER else 99, finding.name))


def claims_region(folder: Path) -> str:
    """All findings as Markdown; pictures are beside the files."""
    return "\n".join(section(finding, folder.name) for finding in load_all(folder))


def write_page(page: Path, folder: Path) -> None:
    """Write the page and its pictures."""
    for finding in load_all(folder):
        if finding.curves:
            (folder / f"{finding.name}.png").write_bytes(png_of(picture(finding)))
    page.write_text(f"{HEAD}{BEGIN}{claims_region(folder)}\n{END}", encoding="utf-8")


def section(finding: Finding, folder_name: str) -> str:
    """One claim: what was published, targets, picture, table, notes, origin."""
    lines = [f"## {finding.title}", "", f"Published: {finding.published}.", ""]
    if finding.checks:
        lines += ["| measured | expected | here | |", "|---|---|---|---|"]
        for check in finding.checks:
            here = DASH if check.measured is None else between([check.measured, *(check.bounds or ())])
            lines.append(f"| {check.what} | {check.expected} | {here} | {check.verdict} |")
        lines.append("")
    if finding.curves:
        lines += [f"![{finding.title}](results/{folder_name}/{finding.name}.png)", ""]
    lines += table(finding.rows)
    lines += [f"- {note[:1].upper()}{note[1:]}." for note in dict.fromkeys(finding.notes)]
    about = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in finding.about.items() if key != "config")
    origin = finding.provenance
    lines += ["", f"{about}.", "", f"`{origin.get('command')}`, preset {finding.preset}, {origin.get('hardware')}, "]
    lines[-1] += f"{finding.seconds:,.0f} s, commit {origin.get('commit')}, {origin.get('date')}"
    return "\n".join([*lines, ""])


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows as Markdown, with the columns that any of them has."""
    if not rows:
        return []
    columns = ["label", *dict.fromkeys(key for row in rows for key in row if key not in HIDDEN | {"label"})]
    columns = [key for key in columns if any(row.get(key) not in (None, 0, 0.0) for row in rows)]
    lines = [
        "| " + " | ".join(TOLD.get(key, key.replace("_", " ")) for key in columns) + " |",
        "|---" * len(columns) + "|",
    ]
    lines += ["| " + " | ".join(cell(key, row) for key in columns) + " |" for row in rows]
    return [*lines, ""]


def cell(key: str, row: dict[str, Any]) -> str:
    """One value as text."""
    value = row.get(key)
    if value is None:
        return DASH
    if key == "accuracy" and row.get("ci95"):
        low, high = row["ci95"]
        return f"{100 * value:.1f}% ({100 * low:.1f}{DASH}{100 * high:.1f}), n={row.get('num')}"
    if isinstance(value, list):
        return between(value)
    if key.endswith("bytes"):
        return human_bytes(value)
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def between(value: Sequence[float]) -> str:
    """A value, with its bounds where there are any."""
    told, *bounds = (f"{number:.2f}".replace("-", "−") for number in value)
    return f"{told} ({' to '.join(bounds)})" if bounds else told


def picture(finding: Finding) -> Any:
    """All curves with their intervals."""
    figure, axes = new_figure(LIGHT, 4.4)
    for number, (name, points) in enumerate(finding.curves.items()):
        x, y, low, high = zip(*points, strict=True)
        colour = LIGHT.runs[number % len(LIGHT.runs)]
        gaps = [
            [max(0.0, b - a) for a, b in zip(low, y, strict=True)],
            [max(0.0, b - a) for a, b in zip(y, high, strict=True)],
        ]
        axes.errorbar(x, y, yerr=gaps, color=colour, capsize=3, linewidth=0.8, alpha=0.6, fmt="none")
        axes.plot(x, y, "o-", color=colour, label=name, linewidth=1.8, markersize=5)
    ticks = sorted({point[0] for points in finding.curves.values() for point in points})
    if finding.log_x:
        axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(xlabel=finding.x_label, ylabel=finding.y_label, ylim=(0, 1.05 if finding.y_label == "accuracy" else None))
    add_legend(figure, LIGHT)
    return figure
