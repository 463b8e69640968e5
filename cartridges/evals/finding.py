"""What a claim's measurement found: rows, curves, checks against targets, and where it was measured; as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from cartridges.errors import FormatError, InputError
from cartridges.run_folder import write_whole


@dataclass(frozen=True)
class Check:
    """A target and what was measured; both are numbers of the unit that `what` says. A lead has to be above 0."""

    what: str
    target: float
    measured: float | None
    at_least: bool = True

    @property
    def holds(self) -> bool:
        if self.measured is None:
            return False
        if not self.at_least:
            return self.measured <= self.target
        return self.measured >= self.target and self.measured > 0

    @property
    def expected(self) -> str:
        """The target in words."""
        if self.at_least and not self.target:
            return "above 0"
        return f"{'at least' if self.at_least else 'at most'} {self.target:.2f}"


@dataclass
class Finding:
    """One claim. `curves` are {name: [[x, y, low, high], ...]} over `x_label`; rows are tables of plain values."""

    name: str
    title: str
    published: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    x_label: str = ""
    y_label: str = "accuracy"
    log_x: bool = False
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    preset: str = ""
    seconds: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        write_whole(Path(path), (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """The finding in a file. Raises InputError where there is none, FormatError where it is damaged."""
        if not Path(path).is_file():
            raise InputError(f"no finding at {path}; measure with: cartridges claims")
        try:
            told = json.loads(Path(path).read_text(encoding="utf-8"))
            told["checks"] = [Check(**check) for check in told["checks"]]
            finding = cls(**told)
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{path} cannot be read ({type(error).__name__}: {error}); measure again") from error
        commits = {str(row["commit"]) for row in finding.rows if "commit" in row}
        commits.add(str(finding.provenance.get("commit")))
        if len(commits) > 1:
            raise FormatError(f"{path} mixes results of the commits {', '.join(sorted(commits))}; measure again")
        return finding


def point(x: float, row: Mapping[str, Any]) -> list[float]:
    """A row of the table as a point of a curve."""
    return [x, row["accuracy"], *row["ci95"]]
