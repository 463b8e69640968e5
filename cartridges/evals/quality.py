"""How good synthetic conversations are, judged against the ground truth of the generated world.

A message is answerable where it can be read back to facts of its document; an answer is right where the world's own
rules score it so. Numbers in an answer that stand neither in the piece read nor in the message are fabricated.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cartridges.conversation import Conversation, normalised
from cartridges.corpus import Corpus
from cartridges.errors import InputError
from cartridges.pocket.scoring import score
from cartridges.pocket.understand import understand
from cartridges.pocket.world import Context, Fact

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Judged:
    """One conversation: can its message be answered, is its answer right (None: not judged), numbers made up."""

    kind: str
    is_answerable: bool
    score: float | None
    num_numbers: int
    num_fabricated: int
    touched: frozenset[Fact]


def fabricated(answer: str, sources: str) -> tuple[int, int]:
    """How many numbers an answer holds, and how many of them no source does."""
    known = set(NUMBER.findall(sources))
    found = NUMBER.findall(answer)
    return len(found), sum(number not in known for number in found)


def judge(talk: Conversation, context: Context, corpus: Corpus) -> Judged:
    """The conversation's first exchange; `context` is that of its document."""
    message, answer = talk.messages[0]["content"], talk.messages[1]["content"]
    question = understand(message, context)
    piece = corpus.document(talk.document).text[talk.start : talk.stop]
    num, num_fabricated = fabricated(answer, f"{piece} {message}")
    if question is not None and question.kind == "count":  # a count is a number that no text holds
        num_fabricated = 0
    right = score(question, answer) if question is not None else None
    touched = frozenset(f for f in question.needs if f.value in answer) if question is not None else frozenset()
    return Judged(talk.seed_kind, question is not None, right, num, num_fabricated, touched)


def quality(talks: Sequence[Conversation], corpus: Corpus, context: Context, paths: Sequence[str]) -> dict[str, Any]:
    """Figures of all conversations about the corpus, and by kind of seed prompt.

    `paths` name the documents of the context, in their order. Raises InputError where there are no conversations.
    """
    of_path = {
        path: Context([document], context.names) for path, document in zip(paths, context.documents, strict=True)
    }
    talks = [talk for talk in talks if talk.document]
    if not talks:
        raise InputError("given no conversations about the corpus, expected at least one to judge")
    judged = [judge(talk, of_path[talk.document], corpus) for talk in talks]
    messages = Counter(normalised(talk.messages[0]["content"]) for talk in talks)
    facts = {fact for document in context.documents for fact in document.facts}
    touched = {fact for each in judged for fact in each.touched}
    by_kind: dict[str, list[Judged]] = defaultdict(list)
    for each in judged:
        by_kind[each.kind].append(each)
    return {
        **figures(judged),
        "duplicate_ratio": round(1 - len(messages) / len(talks), 4),
        "facts_covered": round(len(touched & facts) / len(facts), 4),
        "by_kind": {kind: figures(found) for kind, found in sorted(by_kind.items())},
    }


def figures(judged: Iterable[Judged]) -> dict[str, Any]:
    """Ratios over conversations; right answers are among the answerable messages."""
    judged = list(judged)
    scores = [each.score for each in judged if each.score is not None]
    num_numbers = sum(each.num_numbers for each in judged)
    return {
        "num": len(judged),
        "answerable_ratio": round(len(scores) / len(judged), 4),
        "right_ratio": round(sum(scores) / len(scores), 4) if scores else None,
        "fabricated_ratio": round(sum(each.num_fabricated for each in judged) / num_numbers, 4)
        if num_numbers
        else None,
    }
