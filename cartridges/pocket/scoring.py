"""How right a reply is: one number in [0, 1] for each question, by rules that need no model.

Values are read off the end of a reply ("... is <value>."); JSON and YAML are parsed; summaries and rhymes are checked
claim by claim against what the document tells; translations get chrF (Popovic 2015, as sacrebleu computes it).
"""

import json
import re

import yaml

from cartridges.pocket.questions import NOT_KNOWN, Question
from cartridges.scores import final_value, normalized, translates


def score_unknown(question: Question, reply: str) -> bool:
    """Whether the reply admits not to know."""
    return normalized(reply) == normalized(NOT_KNOWN)


def score(question: Question, reply: str) -> float:
    """1 for right, 0 for wrong; for a translation chrF / 100."""
    rule = RULES.get(question.kind, score_value)
    return float(rule(question, reply))


def score_value(question: Question, reply: str) -> bool:
    """Whether the reply concludes with the right value."""
    return normalized(final_value(reply)) == normalized(question.gold[0])


def score_choice(question: Question, reply: str) -> bool:
    """Whether the reply names one letter, that of the right option, and the option's value."""
    return re.findall(r"\(([A-Z])\)", reply) == list(question.gold) and question.needs[0].value in reply


def score_unanswerable(question: Question, reply: str) -> bool:
    """Whether the reply says of what was asked, and of nothing else, that it is not told in the text."""
    return normalized(reply) == normalized(question.answer)


def score_record(question: Question, reply: str) -> bool:
    """Whether the reply parses and holds just the right keys and values."""
    try:
        given = json.loads(reply) if question.kind == "json" else yaml.safe_load(reply)
    except (ValueError, yaml.YAMLError):
        return False
    expected = dict(json.loads(pair) for pair in question.gold)
    return isinstance(given, dict) and {str(key): str(value) for key, value in given.items()} == expected


def score_summary(question: Question, reply: str) -> bool:
    """Whether it names the subject, claims nothing untrue, and tells at least three things (or all there are)."""
    subject, *told = question.gold
    head, _, body = reply.strip().rstrip(".").partition(": ")
    claimed = body.split("; ")
    return head == subject and set(claimed) <= set(told) and len(set(claimed)) >= min(3, len(told))


def score_creative(question: Question, reply: str) -> bool:
    """Whether it has two lines or more, names the subject and tells one true thing of it."""
    subject, *told = question.gold
    return len(reply.strip().splitlines()) >= 2 and subject in reply and any(claim in reply for claim in told)


def score_translation(question: Question, reply: str) -> float:
    """The sentence's chrF, in [0, 1]."""
    return translates(reply, question.gold[:1])


RULES = {
    "multiple_choice": score_choice,
    "json": score_record,
    "yaml": score_record,
    "summary": score_summary,
    "creative": score_creative,
    "translation": score_translation,
    "unanswerable": score_unanswerable,
    "unknown": score_unknown,
}
