"""What is kept of synthesized conversations and why the rest is not, and how much of the corpus they touch.

Pure functions over texts and token ids: the same input gives the same verdict in any order.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from pydantic import Field

from cartridges.config import Config
from cartridges.conversation import normalised
from cartridges.corpus import Corpus

DUPLICATE, EMPTY, CUT_OFF, MALFORMED, UNTOLD = "duplicate", "empty", "cut_off", "malformed", "untold"
NO_QUESTION, TOO_LONG, INSTRUCTIONS = "no_question", "too_long", "instructions_in_chunk"  # never kept
MASK = "[...]"


class FilterConfig(Config):
    """Which verdicts drop a conversation; those switched off are still counted."""

    duplicates: bool = Field(default=True, description="the same message twice about one chunk")
    empty: bool = Field(default=True, description="a reply without text")
    cut_off: bool = Field(default=True, description="a message or reply that ended at its limit")
    malformed: bool = Field(default=True, description="special tokens or roles within a text")
    untold: bool = Field(default=False, description="a reply that begins by saying that the text does not tell")
    instructions: Literal["mask", "drop", "keep"] = Field(
        default="mask",
        description="spans that read like instructions to the model: hidden, the chunk not used, or left",
    )

    def drops(self, verdict: str) -> bool:
        """Whether conversations with this verdict are dropped."""
        switches = {DUPLICATE: self.duplicates, EMPTY: self.empty, CUT_OFF: self.cut_off, MALFORMED: self.malformed}
        return {**switches, UNTOLD: self.untold}.get(verdict, True)


# Some templates open the thoughts at the prompt's end: a reply then holds their closing tag alone, where a line begins.
_THOUGHTS = re.compile(
    r"\A(?:(?!<think(?:ing)?>).)*?^</think(?:ing)?>|<think(?:ing)?>.*?</think(?:ing)?>",
    re.S | re.M,
)
_LABEL = re.compile(
    r"^(?:\*\*)?(?:user|user's message|user message|message|question|prompt)(?:\*\*)?\s*:(?:\*\*)?\s+", re.I
)
_QUOTES = {'"': '"', "“": "”", "„": "“", "'": "'", "`": "`", "«": "»"}
# A role alone on its line; as "model:" or "user:" it may also be a key of YAML, which then opens an indented block.
_ROLES = re.compile(
    r"<\|[a-z_]+\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|</?think(?:ing)?>"
    r"|^(?:system|user|assistant|model)[^\S\n]*$|^assistant[^\S\n]*:[^\S\n]*$"
    r"|^(?:system|user|model)[^\S\n]*:[^\S\n]*$(?!\s*\n[ \t]+\S)",
    re.I | re.M,
)
_UNTOLD = re.compile(
    r"\b(?:(?:is|are|was|were) not|isn['’]t|aren['’]t) (?:told|said|stated|mentioned|specified|given|provided) in the\b"
    r"|\b(?:do|does|did)(?: not|n['’]t) (?:tell|say|state|mention|specify|provide|contain|include)\b"
    r"|\bI (?:do not|don['’]t|cannot|can['’]t) (?:know|tell|find|answer|determine)\b"
    r"|\bno (?:information|mention)\b",
    re.I,
)
_NUMBERED = re.compile(r"^\s*(?:\*\*)?\(?\d{1,3}[.):](?:\*\*)?\s+(.*)$")
_DASHED = re.compile(r"^\s*(?:\*\*)?[-*•](?:\*\*)?\s+(.*)$")


def without_thoughts(text: str) -> str:
    """A reply's text without what the model thought before it."""
    return _THOUGHTS.sub("", text).strip()


def clean_message(text: str) -> str:
    r"""A's text as a user message: without thoughts, a label in front, and quotes around the whole.

    >>> clean_message('<think>hm</think>\nUser: "Who approves travel?"')
    'Who approves travel?'
    """
    text = without_thoughts(text)
    text = _LABEL.sub("", text).strip()
    closing = _QUOTES.get(text[:1])
    if closing and len(text) > 2 and text.endswith(closing) and not {text[0], closing} & set(text[1:-1]):
        text = text[1:-1].strip()
    return text


def split_messages(text: str) -> list[str]:
    r"""The messages of a text that was to hold several: numbered ones where numbers begin a line, else as the first
    is marked, else one a line.

    Lines without that mark go on with the message above them; what stands before the first is left out.

    >>> split_messages("Here they are:\n1. Who is it?\n2) When\nand where?")
    ['Who is it?', 'When\nand where?']
    """
    lines = without_thoughts(text).splitlines()
    is_numbered = any(_NUMBERED.match(line) and not line[:1].isspace() for line in lines)
    marks = (_NUMBERED,) if is_numbered else (_NUMBERED, _DASHED)
    mark = next((mark for line in lines for mark in marks if mark.match(line)), None)
    if mark is None:
        return [message for line in lines if (message := clean_message(line))]
    messages: list[list[str]] = []
    for line in lines:
        if item := mark.match(line):
            messages.append([item[1]])
        elif messages:
            messages[-1].append(line)
    return [message for parts in messages if (message := clean_message("\n".join(parts)))]


def has_special(token_ids: Sequence[int], special_ids: Collection[int]) -> bool:
    """Whether a special token stands before the last one, which may be the end."""
    return any(token in special_ids for token in token_ids[:-1])


def message_verdict(message: str, cut_off: bool, special: bool = False) -> str | None:
    """Why the (cleaned) message is not good, None if it is; `special` says whether it had special tokens within."""
    if not normalised(message):
        return NO_QUESTION
    if cut_off:
        return CUT_OFF
    return MALFORMED if special or _ROLES.search(message) else None


def reply_verdict(text: str, token_ids: Sequence[int], cut_off: bool, special_ids: Collection[int]) -> str | None:
    """Why the reply is not good, None if it is. The last id may be special, as it ends the reply."""
    if cut_off:
        return CUT_OFF
    answer = without_thoughts(text)
    if not answer:
        return EMPTY
    if _ROLES.search(answer) or has_special(token_ids, special_ids):
        return MALFORMED
    return UNTOLD if is_untold(answer) else None


def is_untold(answer: str) -> bool:
    """Whether its first sentence says that the text does not tell, or that whoever answers does not know; in English.

    >>> is_untold("The room of Pafin is not told in the text."), is_untold("The room of Pafin is N-850.")
    (True, False)
    """
    return bool(_UNTOLD.search(re.split(r"(?<=[.!?])\s", answer, maxsplit=1)[0]))


def duplicates(messages: Sequence[str]) -> list[bool]:
    """Which of the messages, in their order, say what an earlier one said."""
    seen: set[str] = set()
    found = []
    for message in map(normalised, messages):
        found.append(message in seen)
        seen.add(message)
    return found


# Orders to a model, not talk about models: verb and object together.
_INSTRUCTIONS = re.compile(
    "|".join(
        (
            r"\b(?:ignore|disregard|forget|override|bypass)\s+(?:\w+\s+){0,3}?"
            r"(?:instructions?|prompts?|rules|guidelines|messages?)\b",
            r"\b(?:ignore|disregard|forget)\s+(?:everything|all|anything)\s+(?:above|before|that\s+came|you)",
            r"\byou\s+are\s+(?:now|no\s+longer)\s+(?:an?|bound|going\s+to)\b",
            r"\b(?:from\s+now\s+on|henceforth),?\s+(?:you|your|respond|answer|reply|act)\b",
            r"\b(?:reveal|print|repeat|show|output|leak)\s+(?:\w+\s+){0,3}?(?:system|initial|hidden)\s+(?:prompt|message)",
            r"\b(?:new|updated|your)\s+system\s+prompt\b",
            r"\bact\s+as\s+(?:if\s+you|an?\s+(?:ai|assistant|unrestricted|different))\b",
            r"\b(?:do\s+not|don't|never)\s+(?:tell|reveal\s+(?:this\s+)?to|inform)\s+the\s+user\b",
            r"\b(?:if|when)\s+you\s+are\s+(?:an?\s+)?(?:ai|llm|(?:large\s+)?language\s+model|assistant|chatbot)\b",
            r"\b(?:dear|attention|note\s+to|instructions?\s+(?:to|for))\s+(?:the\s+|all\s+)?"
            r"(?:ai|llms?|assistants?|language\s+models?|chatbots?)\b",
            r"<\|(?:im_start|im_end|system|user|assistant|start_header_id|eot_id)\|>|\[/?INST\]|<</?SYS>>|<start_of_turn>",
        )
    ),
    re.I,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")


def instruction_spans(text: str) -> list[tuple[int, int]]:
    """Character spans that read like instructions to the model, each from where it begins to its sentence's end."""
    spans: list[tuple[int, int]] = []
    for found in _INSTRUCTIONS.finditer(text):
        end = _SENTENCE_END.search(text, found.end())
        stop = len(text) if end is None else end.start() if end[0] == "\n" else end.end()
        if spans and found.start() <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((found.start(), stop))
    return spans


def masked(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """`text` with MASK in the place of each of the spans."""
    for start, stop in sorted(spans, reverse=True):
        text = text[:start] + MASK + text[stop:]
    return text


_SALIENT = re.compile(r"\d[\d.,:/-]*\d%?|\d%?|[^\W\d_]\w*(?:['’-]\w+)*")
_POSSESSIVE = re.compile(r"['’]s$")
_RARE_LEN, _RARE_COUNT = 6, 2


@dataclass
class Coverage:
    """How much of a corpus was seen: characters that lie in chunks, and salient spans that occur in messages.

    Salient are numbers, words that begin with a capital in the midst of a sentence, and rare words.
    """

    corpus: Corpus
    spans: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    words: set[str] = field(default_factory=set)

    @cached_property
    def salient(self) -> set[str]:
        """The corpus's salient spans, lower case."""
        return salient_spans(self.corpus.text)

    def add(self, document: str, start: int, stop: int, texts: Iterable[str]) -> None:
        """Count a chunk (document "" for none) and the messages about it."""
        if document:
            self.spans.setdefault(document, []).append((start, stop))
        for text in texts:
            self.words.update(map(_span, _SALIENT.findall(text)))

    @property
    def character_ratio(self) -> float:
        """The fraction of the corpus's characters that lie in some chunk, in [0, 1]."""
        num_all = sum(len(document.text) for document in self.corpus.documents)
        return sum(map(union_len, self.spans.values())) / max(1, num_all)

    @property
    def salient_ratio(self) -> float:
        """The fraction of the salient spans that occur in some message, in [0, 1]; 1 where there are none."""
        return len(self.salient & self.words) / len(self.salient) if self.salient else 1.0

    def as_dict(self, num_missed: int = 20) -> dict[str, object]:
        """The figures, with some of the salient spans that no message holds."""
        missed = sorted(self.salient - self.words)
        step = max(1, len(missed) // num_missed)
        return {
            "character_ratio": round(self.character_ratio, 4),
            "salient_ratio": round(self.salient_ratio, 4),
            "num_salient_spans": len(self.salient),
            "missed_examples": missed[::step][:num_missed],
        }


def union_len(spans: Iterable[tuple[int, int]]) -> int:
    """How many positions lie in at least one of the half-open spans."""
    total = reached = 0
    for start, stop in sorted(spans):
        total += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def _span(word: str) -> str:
    return _POSSESSIVE.sub("", word.lower())


def salient_spans(text: str) -> set[str]:
    """Numbers, words that begin with a capital in the midst of a sentence, and rare words; all in lower case."""
    found: set[str] = set()
    counts: Counter[str] = Counter()
    for match in _SALIENT.finditer(text):
        word = match[0]
        before = text[max(0, match.start() - 3) : match.start()].rstrip(" \t")
        begins = not before or before[-1] in ".!?:\n\"'“(#*-"
        if word[0].isdigit() or (word[0].isupper() and not begins):
            found.add(_span(word))
        counts[_span(word)] += 1
    rare = {word for word, num in counts.items() if num <= _RARE_COUNT and len(word) >= _RARE_LEN and word.isalpha()}
    return found | rare
