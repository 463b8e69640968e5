"""What a claim's measurement found: rows, curves, checks against targets, and where it was measured; as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from cartridges.errors import FormatError, InputError
from cartridges.evals.record import Record
from cartridges.intervals import difference, ratio
from cartridges.run_folder import write_json


@dataclass(frozen=True)
class Check:
    """A target and what was measured; both are numbers of the unit that `what` says, with 95% bounds where known.

    A lead, whose target is 0, has to be above it with its lower bound: less may be chance.
    """

    what: str
    target: float
    measured: float | None
    at_least: bool = True
    bounds: Sequence[float] | None = None

    @property
    def is_lead(self) -> bool:
        return self.at_least and not self.target

    @property
    def holds(self) -> bool:
        if self.measured is None:
            return False
        if not self.at_least:
            return self.measured <= self.target
        return (self.bounds[0] if self.is_lead and self.bounds else self.measured) > 0 and self.measured >= self.target

    @property
    def verdict(self) -> str:
        """Whether it holds, in words."""
        may_be_chance = self.is_lead and self.measured is not None and self.measured > 0
        return "holds" if self.holds else "**may be chance**" if may_be_chance else "**does not hold**"

    @property
    def expected(self) -> str:
        """The target in words."""
        if self.is_lead:
            return "above 0"
        return f"{'at least' if self.at_least else 'at most'} {self.target:.2f}"


def lead(what: str, ours: Record, theirs: Record) -> Check:
    """What is claimed to do better, minus the other, over the same questions."""
    gap, *bounds = (round(value, 4) for value in difference(ours.beside(theirs)))
    return Check(what, 0.0, gap, bounds=bounds)


def share(what: str, target: float, ours: Record, theirs: Record) -> Check:
    """What is claimed to reach so much of the other, over the same questions."""
    found = ratio(ours.beside(theirs))
    if found is None:
        return Check(what, target, None)
    of, *bounds = (round(value, 4) for value in found)
    return Check(what, target, of, bounds=bounds)


def loss(what: str, target: float, before: Record, after: Record) -> Check:
    """What may be lost at most, over the same questions."""
    gap, *bounds = (round(value, 4) for value in difference(before.beside(after)))
    return Check(what, target, gap, at_least=False, bounds=bounds)


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
        write_json(Path(path), asdict(self))

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
