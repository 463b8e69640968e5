"""How right a reply is: rules that need no model, each a function of the reply and the gold texts, in [0, 1].

Right or wrong: `contains`, `exact`, `final`, `record`, `letter` (multiple choice, as LongHealth), `any`. By degrees:
`share` (RULER's string_match_all, arXiv 2404.06654), `f1` (token F1 of SQuAD and QASPER, arXiv 2105.03011), `chrf` and
`translation` (chrF / 100 of the reply or of what it concludes; Popovic 2015, as sacrebleu computes it).
"""

import json
import re
import string
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

from cartridges.config import YAML_ERRORS

if TYPE_CHECKING:
    from sacrebleu.metrics.chrf import CHRF


def normalized(text: str) -> str:
    """Text without case, extra white space and the full stop at its end."""
    return re.sub(r"\s+", " ", text).strip().strip(".").strip().lower()


# Letters of scripts that put no spaces between words, or write particles on to them: Thai to Khmer, kana, Han, Hangul.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_LETTER = rf"[^\W{_UNSPACED}]"


def holds(reply: str, golds: tuple[str, ...]) -> bool:
    """Whether every gold text stands in the reply, as whole words where its script has them."""
    return all(
        re.search(rf"(?<!{_LETTER})(?<!\d[.,]){re.escape(normalized(gold))}(?!{_LETTER})(?![.,]\d)", normalized(reply))
        for gold in golds
    )


def equals(reply: str, golds: tuple[str, ...]) -> bool:
    """Whether the reply is one of the gold texts."""
    return normalized(reply) in map(normalized, golds)


def final_value(reply: str) -> str:
    """What a reply concludes: the text behind its last "is"."""
    return re.split(r"\bis\s", reply)[-1]


def concludes(reply: str, golds: tuple[str, ...]) -> bool:
    """Whether what stands behind the reply's last "is" is one of the gold texts."""
    return equals(final_value(reply), golds)


def is_record(reply: str, golds: tuple[str, ...]) -> bool:
    """Whether the reply is JSON or YAML with just the keys and values of the gold record (JSON), by their text.

    So `time: 17:30` and `smoker: no` are what they say, and not what YAML 1.1 takes them for.
    """
    try:
        return yaml.load(reply, yaml.BaseLoader) == _texts(json.loads(golds[0]))
    except YAML_ERRORS:
        return False


def _texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _texts(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_texts(part) for part in value]
    return value if isinstance(value, str) else json.dumps(value)


_NAMED = re.compile(r"(?:answer|option|choice)\s*(?:is|:)?[\s*(\"']*([A-Z])\b", re.IGNORECASE)
_ALONE = re.compile(r"(?:^|[\s(*\"'])([A-Z])(?:[).:,*\"']|\s*$)", re.MULTILINE)


def letter_of(reply: str) -> str:
    """The option that a reply settles on: the last one it calls its answer, else the first letter that stands alone."""
    named = [letter for letter in _NAMED.findall(reply) if letter.isupper()]
    if named:
        return named[-1]
    alone = _ALONE.findall(reply)
    return alone[0] if alone else ""


def chooses(reply: str, golds: tuple[str, ...]) -> bool:
    """Whether the reply settles on the letter of the right option."""
    return letter_of(reply) in golds


def share(reply: str, golds: tuple[str, ...]) -> float:
    """Which part of the gold texts the reply holds, in any case of letters."""
    return sum(gold.lower() in reply.lower() for gold in golds) / len(golds)


def any_of(reply: str, golds: tuple[str, ...]) -> bool:
    """Whether the reply holds one of the gold texts, in any case of letters."""
    return share(reply, golds) > 0


def answer_tokens(text: str) -> list[str]:
    """Words without case, punctuation and articles."""
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def token_f1(reply: str, golds: tuple[str, ...]) -> float:
    """The best F1 of the reply's words with those of a gold text."""

    def f1(gold: str) -> float:
        ours, theirs = answer_tokens(reply), answer_tokens(gold)
        num_same = sum((Counter(ours) & Counter(theirs)).values())
        if not ours or not theirs or not num_same:
            return float(ours == theirs)
        precision, recall = num_same / len(ours), num_same / len(theirs)
        return 2 * precision * recall / (precision + recall)

    return max(map(f1, golds))


@cache
def chrf() -> "CHRF":
    """The scorer of translations, made once."""
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def sentence_chrf(reply: str, golds: tuple[str, ...]) -> float:
    """The sentence's chrF over 100 against the gold texts."""
    return chrf().sentence_score(reply.strip(), [gold.strip() for gold in golds]).score / 100


def translates(reply: str, golds: tuple[str, ...]) -> float:
    """The chrF over 100 of what the reply concludes, without case."""
    return sentence_chrf(normalized(final_value(reply)), tuple(map(normalized, golds)))


RULES: dict[str, Callable[[str, tuple[str, ...]], float]] = {
    "contains": holds,
    "exact": equals,
    "final": concludes,
    "record": is_record,
    "letter": chooses,
    "share": share,
    "any": any_of,
    "f1": token_f1,
    "chrf": sentence_chrf,
    "translation": translates,
}


def unfit_golds(match: str, golds: tuple[str, ...]) -> str:
    """What the rule expects of gold texts, where no reply could be right by these; else nothing."""
    if match == "letter" and not all(re.fullmatch("[A-Z]", gold) for gold in golds):
        return "the letter of an option, such as B"
    if match == "record" and golds:
        try:
            is_object = isinstance(json.loads(golds[0]), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object or len(golds) > 1:
            return "one JSON object, as text"
    return ""
