"""The pictures of a report as PNG: accuracy of every method, accuracy against bytes, loss curves.

Drawn without pyplot, for light and for dark pages; the same numbers give the same bytes.
"""

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cartridges.log import read_metrics
from cartridges.report_page import Drawn, shown
from cartridges.report_table import human_bytes, is_cartridge, is_number, labels
from cartridges.results import NONE, TRUNCATED, UNTRAINED, MethodResult, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160
WIDTH = 6.2  # inches: narrow, so that it can be read on a phone
LABEL_CHARS, LABEL_LINES = 26, 2


@dataclass(frozen=True)
class Theme:
    """Colours: of the page, text and grid, and of each kind of method."""

    page: str
    text: str
    grid: str
    reference: str
    cartridge: str
    untrained: str
    other: str
    runs: tuple[str, ...]


LIGHT = Theme(
    *("#ffffff", "#1b2430", "#dfe4ea", "#475569", "#0f766e", "#7cc4bb", "#a3aebc"),
    ("#0f766e", "#b45309", "#4338ca", "#be185d", "#15803d", "#0369a1", "#7c2d12", "#6d28d9", "#525252", "#a16207"),
)
DARK = Theme(
    *("#12161c", "#e4e8ee", "#2b333e", "#64748b", "#0d9488", "#1c5a54", "#3f4a59"),
    ("#2dd4bf", "#fbbf24", "#a5b4fc", "#f9a8d4", "#86efac", "#7dd3fc", "#fdba74", "#c4b5fd", "#d4d4d4", "#fde047"),
)


def metric_of(results: Results) -> str | None:
    """What the pictures show: accuracy, or agreement where nothing was scored; None where neither was measured."""
    for name in ("accuracy", "top1_agreement"):
        if any(is_number(getattr(row, name)) for row in results.methods):
            return name
    return None


def metric_title(metric: str) -> str:
    """The axis in words."""
    return "accuracy" if metric == "accuracy" else "top-1 agreement with the reference"


def drawn(draw: Any, *arguments: Any) -> Drawn:
    """The picture in both themes."""
    return Drawn(*(png_of(draw(theme, *arguments)) for theme in (LIGHT, DARK)))


def new_figure(theme: Theme, height: float) -> "tuple[Figure, Axes]":
    """An empty figure, so many inches high, with one pair of axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor=theme.page)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    dress(axes, theme)
    return figure, axes


def dress(axes: "Axes", theme: Theme) -> None:
    """Colours and lines of the axes."""
    axes.set_facecolor(theme.page)
    axes.set_axisbelow(True)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.tick_params(colors=theme.text, labelsize=9, length=0)
    for part in (axes.xaxis.label, axes.yaxis.label, axes.title):
        part.set_color(theme.text)
    for side in axes.spines.values():
        side.set_visible(False)


def png_of(figure: "Figure") -> bytes:
    """The figure as PNG, without a date or version in it."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a script that the font lacks
        figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()


def wrapped(label: str) -> str:
    """A label in at most two lines."""
    lines = textwrap.wrap(shown(label), LABEL_CHARS, max_lines=LABEL_LINES, placeholder=" …")
    return "\n".join(lines) or "(unnamed)"


def colour_of(row: MethodResult, results: Results, theme: Theme) -> str:
    """The colour of a method's kind."""
    if row.method == results.reference:
        return theme.reference
    if is_cartridge(row):
        return theme.cartridge
    return theme.untrained if row.method.startswith(UNTRAINED) else theme.other


def bounds(row: MethodResult, metric: str) -> tuple[float, float] | None:
    """The 95% interval; only accuracy has one."""
    known = metric == "accuracy" and row.ci95 is not None and all(map(is_number, row.ci95))
    return row.ci95 if known else None


def accuracy_figure(theme: Theme, results: Results, metric: str) -> "Figure":
    """Bars of the metric for each method, with 95% intervals where there are some."""
    rows, named = results.methods, labels(results.methods)
    texts = [wrapped(named[row.method]) for row in rows]
    num_lines = sum(1.0 + 0.75 * text.count("\n") for text in texts)
    figure, axes = new_figure(theme, 0.7 + 0.3 * num_lines)
    for place, row in enumerate(rows):
        value: float | None = getattr(row, metric)
        if not is_number(value):
            axes.text(0.01, place, "not measured", va="center", fontsize=9, color=theme.text, alpha=0.7)
            continue
        axes.barh(place, value, height=0.7, color=colour_of(row, results, theme))
        end, interval = value, bounds(row, metric)
        if interval:
            low, high = interval
            gaps = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.errorbar(value, place, xerr=gaps, color=theme.text, capsize=3.5, linewidth=1.2)
            end = max(value, high)
        weight = "bold" if is_cartridge(row) else "normal"
        text = f"{100 * value:.1f}%"
        axes.text(end + 0.015, place, text, va="center", fontsize=9, color=theme.text, fontweight=weight)
    axes.set_yticks(range(len(rows)), texts)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set(xlim=(0, 1.15), ylim=(len(rows) - 0.45, -0.55))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])
    axes.grid(visible=False, axis="y")
    note = " (lines: 95% intervals)" if any(bounds(row, metric) for row in rows) else ""
    axes.set_xlabel(f"{metric_title(metric)}{note}", fontsize=9)
    return figure


def sized_rows(results: Results, metric: str) -> list[MethodResult]:
    """The trained cartridges that can be drawn against their bytes, smallest first."""
    rows = [row for row in results.cartridges if row.kv_bytes > 0 and is_number(getattr(row, metric))]
    return sorted(rows, key=lambda row: row.kv_bytes)


def sizes_figure(theme: Theme, results: Results, metric: str) -> "Figure":
    """The metric against KV bytes: cartridges as a curve; text, untrained slots and the reference to compare with."""
    figure, axes = new_figure(theme, 4.4)
    axes.set_xscale("log")
    measured = [row for row in results.methods if is_number(getattr(row, metric))]
    sized = [row for row in measured if row.kv_bytes > 0]
    groups = (
        ("cartridge", sized_rows(results, metric), "o-", theme.cartridge),
        ("untrained slots", [r for r in sized if r.method.startswith(UNTRAINED)], "o--", theme.untrained),
        ("first tokens as text", [r for r in sized if r.method.startswith(TRUNCATED)], "s:", theme.other),
    )
    for label, rows, form, colour in groups:
        if rows:
            rows = sorted(rows, key=lambda row: row.kv_bytes)
            curve(axes, theme, rows, metric, (label, form, colour))
    reference = results.row(results.reference)
    named = labels(results.methods)
    if reference in sized:
        curve(axes, theme, [reference], metric, (wrapped(named[reference.method]), "D", theme.reference))
    level(axes, reference, metric, theme.reference, "--", None if reference in sized else named[reference.method])
    for row in measured:
        if row.method == NONE and row.method != results.reference:
            level(axes, row, metric, theme.other, (0, (1, 2)), f"{named[row.method]} (0 bytes)")
    set_byte_axis(axes, [row.kv_bytes for row in sized])
    slot_ticks(axes, theme, sized_rows(results, metric))
    axes.set(ylim=(0, 1.05), xlabel="KV bytes of one request", ylabel=metric_title(metric))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])
    add_legend(figure, theme)
    return figure


def add_legend(figure: "Figure", theme: Theme) -> None:
    """The legend below the axes, in as many columns as fit."""
    lines = [line for label in figure.axes[0].get_legend_handles_labels()[1] for line in label.split("\n")]
    columns = min(3, int((WIDTH - 0.2) / (0.6 + 0.085 * max(map(len, lines)))))
    legend = figure.legend(
        loc="outside lower center", ncols=max(1, columns), frameon=False, fontsize=9, labelcolor=theme.text
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def curve(axes: "Axes", theme: Theme, rows: Sequence[MethodResult], metric: str, style: tuple[str, str, str]) -> None:
    """Methods of one kind as points with intervals, joined by a line; `style` is label, form and colour."""
    label, form, colour = style
    x, y = [row.kv_bytes for row in rows], [float(getattr(row, metric)) for row in rows]
    for row, value in zip(rows, y, strict=True):
        if interval := bounds(row, metric):
            gaps = [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
            axes.errorbar(row.kv_bytes, value, yerr=gaps, color=colour, capsize=3, linewidth=1, alpha=0.8)
    axes.plot(x, y, form, color=colour, label=label, linewidth=1.8, markersize=6.5, markeredgecolor=theme.page)


def level(axes: "Axes", row: MethodResult, metric: str, colour: str, form: Any, label: str | None) -> None:
    """A method as a line across the picture."""
    value: float | None = getattr(row, metric)
    if is_number(value):
        axes.axhline(value, color=colour, linestyle=form, linewidth=1.2, label=label and wrapped(label), zorder=1)


def set_byte_axis(axes: "Axes", sizes: Sequence[int]) -> None:
    """Limits around the sizes, and ticks in human units."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    base = 10.0 if max(sizes) / min(sizes) > 300 else 2.0
    axes.xaxis.set_major_locator(LogLocator(base=base, numticks=7))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))


def slot_ticks(axes: "Axes", theme: Theme, rows: Sequence[MethodResult]) -> None:
    """The sizes in slots along the top, those that would run into each other left out."""
    from matplotlib.ticker import NullLocator

    low, high = axes.get_xlim()
    ticks: dict[float, str] = {}
    for row in rows:
        if not ticks or row.kv_bytes / max(ticks) > (high / low) ** 0.065:
            ticks[row.kv_bytes] = f"{row.num_slots:,}"
    top = axes.twiny()
    dress(top, theme)
    top.grid(visible=False)
    top.set(xscale="log", xlim=(low, high))
    top.xaxis.set_minor_locator(NullLocator())
    top.set_xticks(list(ticks), list(ticks.values()), color=theme.cartridge)
    top.set_xlabel("slots of the cartridges", fontsize=9, color=theme.cartridge)


def loss_curves(paths: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """The lines with a loss of each training run, by the run's name. Raises InputError, FormatError."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in map(Path, paths):
        rows = [row for row in read_metrics(path) if is_value(row, "step")]
        rows = [row for row in rows if is_value(row, "loss") or is_value(row, "heldout_loss")]
        name = path.parent.name or str(path)
        if rows:
            found[name if name not in found else f"{name} ({len(found) + 1})"] = rows
    return found


def is_value(row: Mapping[str, Any], key: str) -> bool:
    """Whether the line of the metrics has a finite number there."""
    return isinstance(row.get(key), int | float) and is_number(float(row[key]))


def training_figure(theme: Theme, runs: Mapping[str, list[dict[str, Any]]]) -> "Figure":
    """Loss over steps: faint on the data, strong on held-out conversations."""
    figure, axes = new_figure(theme, 3.8)
    every: list[float] = []
    for index, (name, rows) in enumerate(runs.items()):
        colour = theme.runs[index % len(theme.runs)]
        trained = [(row["step"], row["loss"]) for row in rows if is_value(row, "loss")]
        heldout = [(row["step"], row["heldout_loss"]) for row in rows if is_value(row, "heldout_loss")]
        every += [loss for _, loss in (*trained, *heldout)]
        label = wrapped(name)
        if trained:
            axes.plot(*zip(*trained, strict=True), color=colour, alpha=0.45, linewidth=1.2, label=f"{label}: data")
        if heldout:
            form = "o-" if len(heldout) < 40 else "-"
            axes.plot(*zip(*heldout, strict=True), form, color=colour, markersize=4.5, label=f"{label}: held out")
    if min(every) > 0 and max(every) / min(every) > 8:
        set_log_axis(axes)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    add_legend(figure, theme)
    return figure


def set_log_axis(axes: "Axes") -> None:
    """A logarithmic axis for losses, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def pictures(results: Results, metrics_paths: Sequence[Path]) -> dict[str, Drawn]:
    """All pictures that the numbers give, by file name. Raises InputError, FormatError for files of metrics."""
    found: dict[str, Drawn] = {}
    if metric := metric_of(results):
        found["accuracy.png"] = drawn(accuracy_figure, results, metric)
        if len(sized_rows(results, metric)) > 1:
            found["sizes.png"] = drawn(sizes_figure, results, metric)
    if runs := loss_curves(metrics_paths):
        found["training.png"] = drawn(training_figure, runs)
    return found
