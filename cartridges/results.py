"""What an evaluation found: one row a method, the replies it rests on, and where it was measured.

`results.json` is this, as JSON. A row without an accuracy is of questions that no known answer scores.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from cartridges.errors import FormatError, InputError
from cartridges.run_folder import write_json

RESULTS = "results.json"
# Names of methods; those of a size go on with "-" and the cartridge's label.
NONE, TRUNCATED, FULL, DOCUMENT, UNTRAINED = "no_context", "truncated", "full_context", "document", "untrained"
WINDOW, CARTRIDGE, ADAPTER = "window_context", "cartridge", "adapter"


@dataclass(frozen=True)
class MethodResult:
    """One method: `accuracy` in [0, 1] with its 95% bounds, closeness to the reference, and what it costs.

    `kl_per_token` (nats) and `top1_agreement` compare next-token distributions with those of the reference method, at
    the tokens of its replies. `kv_bytes` is what one request keeps of the corpus (two bytes a number), `prompt_tokens`
    what it has to read of it, `build_s` what was spent beforehand, `question_s` the seconds a question takes alone,
    reading included.
    """

    method: str
    label: str
    num_slots: int
    num_questions: int
    accuracy: float | None
    ci95: tuple[float, float] | None
    kl_per_token: float | None
    top1_agreement: float | None
    kv_bytes: int
    prompt_tokens: int
    build_s: float
    question_s: float


@dataclass(frozen=True)
class Reply:
    """One question with the replies of every method, by method; `scores` likewise, empty where nothing scores it."""

    question: str
    answer: str
    kind: str
    replies: dict[str, str]
    scores: dict[str, float] = field(default_factory=dict)


@dataclass
class Results:
    """All rows. `reference` is the method that the others are compared with; `notes` say what a reader must know.

    `off_corpus` are rows of questions that have nothing to do with the corpus, compared with the model alone. `about`
    tells the corpus (`num_documents`, `num_tokens`, `digest`), the model (`model_id`) and the window.
    """

    methods: list[MethodResult]
    reference: str
    off_corpus: list[MethodResult] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def row(self, method: str) -> MethodResult:
        """The row of a method. Raises InputError where it was not measured."""
        for row in self.methods:
            if row.method == method:
                return row
        raise InputError(f"no method {method!r} was measured; there are: {', '.join(r.method for r in self.methods)}")

    @property
    def cartridges(self) -> list[MethodResult]:
        """The rows of trained cartridges, smallest first."""
        return sorted((row for row in self.methods if row.method.startswith(CARTRIDGE)), key=lambda row: row.num_slots)

    def __str__(self) -> str:
        """One line a method; `report_table` has the whole table."""
        lines = [f"{'method':<28}{'accuracy (95%)':>24}{'KL':>9}{'KV bytes':>14}{'s/query':>10}"]
        for row in self.methods:
            accuracy = "-" if row.accuracy is None else f"{row.accuracy:.1%}"
            if row.accuracy is not None and row.ci95:
                accuracy += f" ({row.ci95[0]:.1%} - {row.ci95[1]:.1%})"
            kl = "-" if row.kl_per_token is None else f"{row.kl_per_token:.3f}"
            lines.append(f"{row.label:<28}{accuracy:>24}{kl:>9}{row.kv_bytes:>14,}{row.question_s:>10.3f}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        write_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        """The results in `path`. Raises InputError where there are none, FormatError where they cannot be read."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no results at {path}; measure with: cartridges eval")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for name in ("methods", "off_corpus"):
                rows = content[name]
                content[name] = [MethodResult(**{**row, "ci95": row["ci95"] and tuple(row["ci95"])}) for row in rows]
            content["replies"] = [Reply(**reply) for reply in content["replies"]]
            return cls(**content)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"{path} cannot be read ({type(error).__name__}: {error}); measure again") from error
