"""What a run says while it works: progress on stderr, metrics in a local JSONL file, curves drawn from that file.

Progress is a live bar on a terminal and at most one line in `LINE_EVERY_S` seconds elsewhere. Trackers are not here:
they listen to the metrics file's writer.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from cartridges.errors import CartridgesError, FormatError, InputError

LINE_EVERY_S = 30.0

logger = logging.getLogger("cartridges")
Item = TypeVar("Item")


class Bar:
    """Counts work done. This one shows nothing; `progress` picks the one to show."""

    def __init__(self, description: str, total: int | None) -> None:
        """`total` is the number of units of work, None if it is not known."""
        self.description = description
        self.total = total
        self.done = 0

    def advance(self, num_done: int = 1, note: str = "") -> None:
        """Count `num_done` more units; `note` (such as the loss) is shown behind the bar."""
        self.done += num_done
        self._show(note)

    def _show(self, note: str) -> None:
        pass


class _LineBar(Bar):
    """A line now and then, for logs."""

    def __init__(self, description: str, total: int | None) -> None:
        super().__init__(description, total)
        self.shown_at = time.monotonic()

    def _show(self, note: str) -> None:
        if time.monotonic() - self.shown_at < LINE_EVERY_S:
            return
        self.shown_at = time.monotonic()
        of_total = f"/{self.total}" if self.total is not None else ""
        print(f"{self.description}: {self.done}{of_total} {note}".rstrip(), file=sys.stderr, flush=True)


class _LiveBar(Bar):
    """A rich progress bar."""

    def __init__(self, description: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        super().__init__(description, total)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
        )
        self.live = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.live.add_task(description, total=total, note="")

    def _show(self, note: str) -> None:
        self.live.update(self.task, completed=self.done, note=note)


@contextmanager
def progress(description: str, total: int | None = None, enabled: bool = True) -> Iterator[Bar]:
    """A bar to `advance` by hand. `enabled=False` (on ranks other than 0) shows nothing."""
    if not enabled:
        yield Bar(description, total)
    elif sys.stderr.isatty():
        bar = _LiveBar(description, total)
        with bar.live:
            yield bar
    else:
        yield _LineBar(description, total)


def track(items: Iterable[Item], description: str, total: int | None = None, enabled: bool = True) -> Iterator[Item]:
    """The `items`, with progress shown as they are used; `total` defaults to their number where that is known."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(description, total, enabled) as bar:
        for item in items:
            yield item
            bar.advance()


class MetricsLog:
    """Append-only JSONL: one line a call, flushed, so that a run that dies leaves all it had measured."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending, with its folder; a half-written last line of a run that died is cut off."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._cut_half_line()
        self._file = self.path.open("a", encoding="utf-8")

    def append(self, **values: Any) -> None:
        """Write one line. Numbers must be finite: a NaN in the metrics means that the run is broken."""
        try:
            line = json.dumps(values, allow_nan=False, default=_plain)
        except ValueError as error:
            raise CartridgesError(
                f"given the metrics {values}, expected finite numbers; see why the run diverged"
            ) from error
        self._file.write(line + "\n")
        self._file.flush()

    def truncate_after(self, step: int) -> int:
        """Drop the lines of later steps, as a run resumed at `step` will write them anew; returns how many."""
        self._file.close()
        rows = read_metrics(self.path)
        kept = [row for row in rows if row.get("step", step) <= step]
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        partial.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")
        return len(rows) - len(kept)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _cut_half_line(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            logger.warning("%s: cut off a half-written last line (%d bytes)", self.path, len(content) - len(whole))
            os.truncate(self.path, len(whole))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a half-written last line is left out. Raises `InputError`, `FormatError`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"given the metrics file {str(path)!r}, expected a JSONL file; there is none there")
    rows: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise FormatError(
                f"{path}, line {number}: given {line[:60]!r}, expected a JSON object; mend or remove the line"
            )
        rows.append(row)
    return rows


def plot_curves(metrics_path: Path, png_path: Path, panels: Mapping[str, Sequence[str]]) -> None:
    """Draw the metrics over `step`, one panel a title with its keys, to `png_path`.

    Keys without a value yet are left out of the picture; if that is all of them, `InputError`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in read_metrics(metrics_path) if "step" in row]
    curves = {key: [(row["step"], row[key]) for row in rows if key in row] for keys in panels.values() for key in keys}
    if not any(curves.values()):
        found = ", ".join(sorted({key for row in rows for key in row} - {"step"})) or "no metrics"
        raise InputError(f"given the keys {', '.join(curves)}, expected some in {metrics_path}; it has {found}")
    figure = Figure(figsize=(5.0 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, keys) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        for key in keys:
            if points := curves[key]:
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, label=key, marker="o" if len(points) < 30 else None, markersize=3)
        if axes.lines:
            axes.legend()
    Path(png_path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png_path, dpi=120)


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's."""
    if hasattr(value, "item"):
        return value.item()
    raise CartridgesError(f"given the metric {value!r}, expected a number, text, or lists and dicts of them")
