"""What one method answered to one task: a line a question in a file that grows, and the figures made of it.

The first line is a stamp of what was asked, of whom, with which model and at which commit. A file that was cut short is
taken up; one with another stamp is refused, as is one that counts a question twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cartridges.errors import FormatError, InputError, OtherRun
from cartridges.intervals import difference, interval, mean_of, ratio
from cartridges.log import MetricsLog, read_metrics

STAMPED = ("task", "task_digest", "method", "model", "made_of", "commit")


@dataclass(frozen=True)
class Answer:
    """The reply to item number `item`, its score in [0, 1], the tokens read for it and whether it was cut off."""

    item: int
    reply: str
    score: float
    prompt_tokens: int
    is_cut: bool


@dataclass
class Record:
    """All answers of one method to one task, and what the method costs."""

    stamp: dict[str, Any]
    answers: list[Answer]
    label: str = ""
    num_slots: int = 0
    kv_bytes: int = 0
    build_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def method(self) -> str:
        return str(self.stamp["method"])

    @property
    def scores(self) -> list[float]:
        return [answer.score for answer in self.answers]

    @property
    def accuracy(self) -> float:
        return mean_of(self.scores)

    def beside(self, other: "Record") -> list[tuple[float, float]]:
        """The scores of both, question by question. Raises InputError where they must not stand in one table."""
        check_together([self, other])
        return list(zip(self.scores, other.scores, strict=True))

    def row(self, reference: "Record | None" = None) -> dict[str, Any]:
        """The figures as plain values; against `reference`, difference and ratio with paired intervals."""
        low, high = interval(self.scores)
        told: dict[str, Any] = {
            "method": self.method,
            "label": self.label or self.method,
            "accuracy": round(self.accuracy, 4),
            "ci95": [round(low, 4), round(high, 4)],
            "num": len(self.answers),
            "num_slots": self.num_slots,
            "kv_bytes": self.kv_bytes,
            "prompt_tokens": round(mean_of([float(answer.prompt_tokens) for answer in self.answers])),
            "build_s": round(self.build_s, 2),
            "num_empty": sum(not answer.reply.strip() for answer in self.answers),
            "num_cut": sum(answer.is_cut for answer in self.answers),
        }
        if reference is not None:
            pairs = self.beside(reference)
            told["difference"] = [round(value, 4) for value in difference(pairs)]
            of = ratio(pairs)
            told["ratio"] = of and [round(value, 4) for value in of]
            told["bytes_ratio"] = round(reference.kv_bytes / self.kv_bytes, 2) if self.kv_bytes else None
        return told


def check_together(records: Sequence[Record]) -> None:
    """Refuse records that must not stand in one table: of other commits, or other questions. Raises InputError."""
    for key, what in (("commit", "commits"), ("task_digest", "tasks")):
        found = sorted({str(record.stamp.get(key)) for record in records})
        if len(found) > 1:
            named = ", ".join(value[:20] for value in found)
            raise InputError(
                f"given results of different {what} ({named}), expected one; measure all of them at the same one, "
                "into a new folder"
            )
    if len({tuple(answer.item for answer in record.answers) for record in records}) > 1:
        raise InputError("given results of different questions, expected the same ones; finish every run first")


class AnswerFile:
    """The growing file of one method's answers."""

    def __init__(self, path: Path, stamp: Mapping[str, Any], num_items: int) -> None:
        """Take up what `path` holds. Raises OtherRun for another stamp, FormatError for damage."""
        self.path, self.stamp = Path(path), {key: stamp.get(key) for key in STAMPED}
        self.answers: dict[int, Answer] = {}
        self.log = MetricsLog(self.path)
        rows = read_metrics(self.path)
        if not rows:
            self.log.append(**self.stamp)
            return
        differing = [key for key in STAMPED if rows[0].get(key) != self.stamp[key]]
        if differing:
            told = ", ".join(f"{key} {rows[0].get(key)!r} (now {self.stamp[key]!r})" for key in differing)
            raise OtherRun(f"{self.path} holds answers of another run: {told}; give another folder, or delete it")
        for number, row in enumerate(rows[1:], start=2):
            try:
                answer = Answer(**row)
            except TypeError as error:
                raise FormatError(f"{self.path}, line {number} is no answer ({error}); delete the file") from error
            if answer.item in self.answers or not 0 <= answer.item < num_items:
                raise FormatError(
                    f"{self.path}, line {number}: given item {answer.item} twice or beyond the {num_items} of the "
                    "task, expected each once; delete the file"
                )
            self.answers[answer.item] = answer

    def add(self, answer: Answer) -> None:
        """Write an answer down; it will not be asked again."""
        self.log.append(**vars(answer))
        self.answers[answer.item] = answer

    def ordered(self) -> list[Answer]:
        """All answers by item."""
        return [self.answers[item] for item in sorted(self.answers)]
