"""The fidelity table: one row a method, as Markdown, for pages and for a terminal; and the one off the corpus.

A value that is missing or no number is a dash, and a note below says why. Bytes are in powers of ten.
"""

import math
from collections import Counter
from typing import TYPE_CHECKING, TypeGuard

from cartridges.report_page import Table, table_md
from cartridges.results import CARTRIDGE, NONE, MethodResult, Results

if TYPE_CHECKING:
    import rich.table

DASH, MINUS = "–", "−"
COLUMNS = (
    "method",
    "accuracy (95% interval)",
    "KL per token",
    "top-1 agreement",
    "KV bytes",
    "against the reference",
    "prompt tokens",
    "build seconds",
    "seconds per question",
)
NARROW = ("method", "accuracy (95%)", "KL", "top-1", "KV", "bytes", "prompt", "build s", "s/query")


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether something was measured, and is finite."""
    return value is not None and math.isfinite(value)


def percent(value: float | None) -> str:
    """A fraction as "94.2%"."""
    return f"{100 * value:.1f}%" if is_number(value) else DASH


def points(value: float) -> str:
    """A difference of fractions as "+1.5" or "−3.0" points."""
    text = f"{100 * value:+.1f}".replace("-", MINUS)
    return "0.0" if text[1:] == "0.0" else text


def accuracy_text(row: MethodResult) -> str:
    """The accuracy as "94.2% (91.0–96.5)"."""
    if not is_number(row.accuracy):
        return DASH
    if row.ci95 is None or not all(map(is_number, row.ci95)):
        return percent(row.accuracy)
    return f"{percent(row.accuracy)} ({100 * row.ci95[0]:.1f}{DASH}{100 * row.ci95[1]:.1f})"


def kl_text(row: MethodResult) -> str:
    """Nats as "0.123"."""
    if not is_number(row.kl_per_token):
        return DASH
    text = f"{row.kl_per_token:.3f}"
    return "<0.001" if text == "0.000" and row.kl_per_token > 0 else text.replace("-0.000", "0.000")


def human_bytes(num_bytes: float) -> str:
    """Bytes as "1.57 MB"."""
    value, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB", "PB"]
    while float(f"{value:.3g}") >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    digits = 0 if value >= 99.95 or units[0] == "B" else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f} {units[0]}"


def bytes_ratio(row: MethodResult, reference: MethodResult) -> str:
    """How the bytes compare with the reference's: "31x fewer"; "" where one of them keeps none."""
    if row.kv_bytes <= 0 or reference.kv_bytes <= 0:
        return ""
    if row.kv_bytes == reference.kv_bytes:
        return "as many"
    ratio = reference.kv_bytes / row.kv_bytes
    many = max(ratio, 1 / ratio)
    return f"{many:{',.0f' if many >= 9.95 else '.1f' if many >= 1.05 else '.3g'}}x {'fewer' if ratio > 1 else 'more'}"


def seconds_text(value: float | None) -> str:
    """Seconds as "0.213", "3.42", "34.2" or "1,234"."""
    if not is_number(value):
        return DASH
    digits = 0 if value >= 99.95 or value == 0 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
    return "<0.001" if 0 < value < 0.0005 else f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds with their unit, and in hours or minutes where there are many: "1,234 s (20.6 min)"."""
    text = f"{seconds_text(seconds)} s"
    if not is_number(seconds) or seconds < 120:
        return text
    return f"{text} ({seconds / 60:.1f} min)" if seconds < 7200 else f"{text} ({seconds / 3600:.1f} h)"


def counted(num: int, noun: str) -> str:
    """A number with its noun, "1 question" or "2 questions"."""
    return f"{num:,} {noun}{'' if num == 1 else 's'}"


def labels(rows: list[MethodResult]) -> dict[str, str]:
    """What each method is called, by method: its label, with the method's name where two have the same."""
    counts = Counter(row.label for row in rows)
    return {row.method: f"{row.label} ({row.method})" if counts[row.label] > 1 else row.label for row in rows}


def is_cartridge(row: MethodResult) -> bool:
    """Whether the row is of a trained cartridge."""
    return row.method.startswith(CARTRIDGE)


def build_cell(row: MethodResult) -> str:
    """Build seconds; zero means for a cartridge that nobody counted, and for others that there is nothing to build."""
    unknown = is_cartridge(row) and is_number(row.build_s) and row.build_s <= 0
    return DASH if unknown else seconds_text(row.build_s)


def cells(row: MethodResult, label: str, reference: MethodResult) -> list[str]:
    """A row of the table as text."""
    is_reference = row.method == reference.method
    return [
        f"{label} (reference)" if is_reference else label,
        accuracy_text(row),
        kl_text(row),
        percent(row.top1_agreement),
        human_bytes(row.kv_bytes),
        "" if is_reference else bytes_ratio(row, reference),
        f"{row.prompt_tokens:,}",
        build_cell(row),
        seconds_text(row.question_s if row.question_s > 0 else None),
    ]


def missing_notes(rows: list[MethodResult]) -> list[str]:
    """Why there are dashes, one note a reason."""
    found = []
    unscored = [row for row in rows if row.accuracy is None]
    if unscored:
        which = "" if len(unscored) == len(rows) else " in some rows"
        found.append(f"{DASH} for accuracy{which}: no known answers, by which replies could be scored.")
    if any(is_number(row.accuracy) and row.ci95 is None for row in rows):
        found.append("An accuracy without an interval: none was given with it.")
    if any(row.kl_per_token is None or row.top1_agreement is None for row in rows):
        found.append(f"{DASH} for KL or agreement: no next-token distributions were compared.")
    if any(is_cartridge(row) and build_cell(row) == DASH for row in rows):
        found.append(f"{DASH} for build seconds: what making the cartridge took was not recorded.")
    if any(not is_number(row.question_s) or row.question_s <= 0 for row in rows):
        found.append(f"{DASH} for seconds per question: not timed.")
    values = [(row, (row.accuracy, row.kl_per_token, row.top1_agreement, *(row.ci95 or ()))) for row in rows]
    broken = [row.method for row, measured in values if any(v is not None and not math.isfinite(v) for v in measured)]
    if broken:
        found.append(f"{DASH} where a measured value is infinite or no number, which is an error: {', '.join(broken)}.")
    return found


def fidelity_table(results: Results) -> Table:
    """The table of all methods with its notes; the trained cartridges stand out."""
    reference, named = results.row(results.reference), labels(results.methods)
    legend = (
        f"KL (nats) and agreement of the likeliest token are against the reference, {named[reference.method]}, at the "
        "tokens of its replies; the reference agrees with itself by definition. KV bytes are what one request keeps of "
        "the corpus at two bytes a number, prompt tokens what it reads of it."
    )
    return Table(
        COLUMNS,
        [cells(row, named[row.method], reference) for row in results.methods],
        [legend, *missing_notes(results.methods)],
        frozenset(index for index, row in enumerate(results.methods) if is_cartridge(row)),
    )


def results_table(results: Results) -> str:
    """The fidelity table as Markdown, with notes on what is missing. Raises InputError without the reference's row."""
    return table_md(fidelity_table(results))


def console_table(results: Results) -> "rich.table.Table":
    """The fidelity table for a terminal; it fits 100 columns, and 80 with names in several lines.

    Raises InputError without the reference's row.
    """
    import rich.table
    from rich import box
    from rich.text import Text

    reference, named = results.row(results.reference), labels(results.methods)
    notes = " ".join(missing_notes(results.methods))
    table = rich.table.Table(box=box.SIMPLE_HEAD, padding=0, caption_justify="left")
    table.caption = Text(notes) if notes else None
    for index, column in enumerate(NARROW):
        width = (12, 11)[index] if index < 2 else None  # so that names and intervals break between words
        table.add_column(column, justify="right" if index else "left", overflow="fold", min_width=width)
    for row in results.methods:
        texts = cells(row, named[row.method], reference)
        table.add_row(*map(Text, texts), style="bold" if is_cartridge(row) else "")
    return table


def alone_row(results: Results) -> MethodResult | None:
    """The model alone, with which cartridges are compared off the corpus."""
    rows = results.off_corpus
    return next((row for row in rows if row.method == NONE), rows[0] if rows else None)


def harm(row: MethodResult, alone: MethodResult) -> float | None:
    """What accuracy is lost off the corpus, as a fraction; negative where some is gained."""
    both = is_number(row.accuracy) and is_number(alone.accuracy)
    return (alone.accuracy or 0.0) - (row.accuracy or 0.0) if both else None


def harm_text(row: MethodResult, alone: MethodResult) -> str:
    """The harm as "2.0 points lost"."""
    if row.method == alone.method:
        return ""
    lost = harm(row, alone)
    if lost is None:
        return DASH
    text = f"{abs(100 * lost):.1f}"
    return "none" if text == "0.0" else f"{text} points {'lost' if lost > 0 else 'gained'}"


def off_corpus_table(results: Results) -> Table | None:
    """What a cartridge does to questions that have nothing to do with the corpus; None where none were asked."""
    alone = alone_row(results)
    if alone is None:
        return None
    rows, named = results.off_corpus, labels(results.off_corpus)
    texts = [
        [
            named[row.method],
            accuracy_text(row),
            harm_text(row, alone),
            kl_text(row),
            percent(row.top1_agreement),
            f"{row.num_questions:,}",
        ]
        for row in rows
    ]
    columns = (COLUMNS[0], COLUMNS[1], "harm", COLUMNS[2], COLUMNS[3], "questions")
    legend = "Harm is the accuracy lost against the model alone; KL and agreement are against the model alone, too."
    notes = [note for note in missing_notes(rows) if "seconds" not in note]
    return Table(columns, texts, [legend, *notes], frozenset(i for i, row in enumerate(rows) if is_cartridge(row)))
