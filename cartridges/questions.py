"""Questions about a corpus with known answers, as JSON lines, and how a reply is scored against them.

A line is `{"question": ..., "answer": ...}`, and optionally `gold` (a text or a list: what a right reply must hold),
`match` (how, a key of RULES), `document` (the path of the document that answers it) and `kind` (a name for groups).
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cartridges.errors import InputError, half_pair, unknown_name
from cartridges.scores import RULES, unfit_golds


@dataclass(frozen=True)
class Item:
    """One question. Without `golds` nothing scores it, and `answer` is what the teacher said."""

    question: str
    answer: str
    golds: tuple[str, ...] = ()
    match: str = "contains"
    document: str = ""
    kind: str = "question"

    def score(self, reply: str) -> float | None:
        """1 for a right reply, 0 for a wrong one, between them by some rules; None where nothing tells."""
        return float(RULES[self.match](reply, self.golds)) if self.golds else None


def read_items(path: Path) -> list[Item]:
    """The questions of a JSONL file. Raises InputError with the line that cannot be used."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the questions in {path} ({type(error).__name__}); give a JSONL file") from error
    items = [_item(f"{path}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not items:
        raise InputError(f'{path} holds no questions, expected lines such as {{"question": "...", "answer": "..."}}')
    return items


def _item(where: str, line: str) -> Item:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error.msg}); mend or remove it") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} has a number or a nesting beyond what can be read; mend or remove it") from error
    if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
        raise InputError(f"{where}: given {line[:60]!r}, expected an object with a text as 'question'")
    answer, document, kind = (_text(row, key) for key in ("answer", "document", "kind"))
    gold = row.get("gold")
    golds = [gold] if isinstance(gold, str) else gold if gold is not None else [answer] * bool(answer)
    if not isinstance(golds, list) or not all(isinstance(text, str) and text.strip() for text in golds):
        raise InputError(f"{where}: given {gold!r} as 'gold', expected a text or a list of texts")
    match = str(row.get("match", "contains"))
    if match not in RULES:
        raise InputError(f"{where}: {unknown_name('match', match, RULES)}")
    if expected := unfit_golds(match, tuple(golds)):
        raise InputError(f"{where}: given {golds!r:.200} as 'gold' of match {match!r}, expected {expected}")
    item = Item(row["question"], answer, tuple(golds), match, document, kind or "question")
    texts = {"question": [item.question], "answer": [answer], "gold": golds, "document": [document], "kind": [kind]}
    for key, told in texts.items():
        for broken in filter(None, map(half_pair, told)):
            raise InputError(f"{where}: '{key}' has {broken}; mend or remove it")
    return item


def _text(row: dict[str, Any], key: str) -> str:
    """The value as text; nothing where it is missing or null."""
    return "" if row.get(key) is None else str(row[key])


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write questions so that `read_items` gives them back."""
    rows = ({("gold" if key == "golds" else key): value for key, value in asdict(item).items()} for item in items)
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
