"""The inverse of drawing a question: from its text back to facts, answer and gold.

It tells a well-formed question that the context answers (a Question) from any other text (None), and so judges what
the model asks. It works from the same templates as `questions.py`. A reading is a function from (text, context) to the
question, or to None where the text is none of its kind.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from cartridges.pocket import questions as ask
from cartridges.pocket.families.tongue import parse_clause
from cartridges.pocket.questions import Question
from cartridges.pocket.seeds import USE_CASES
from cartridges.pocket.world import Context, Fact


@lru_cache(maxsize=4096)
def _pattern(form: str) -> re.Pattern[str]:
    """A template as a regular expression with one group for each field."""
    parts = re.split(r"\{(\w+)\}", form)
    return re.compile("".join(f"(?P<{part}>.+?)" if i % 2 else re.escape(part) for i, part in enumerate(parts)))


def _matches(forms: Iterable[str], text: str) -> Iterator[dict[str, str]]:
    """The fields of `text`, for each of the forms that it has."""
    for form in forms:
        if found := _pattern(form).fullmatch(text):
            yield found.groupdict()


def _single(context: Context, subject: str, noun: str) -> Fact | None:
    """The fact that tells the one `noun` of the subject, which may go by its short name."""
    facts = context.by_key.get((context.short_names.get(subject, subject), noun), [])
    return facts[0] if len(facts) == 1 else None


def understand(text: str, context: Context) -> Question | None:
    """The question that `text` asks, or None if it is malformed or the context does not answer it.

    The kind is the one drawn, but for a message with a use case, which is the lookup that it holds.
    """
    text = text.strip()
    for preamble in USE_CASES:
        text = text.removeprefix(preamble).strip()
    return next((question for reading in READINGS if (question := reading(text, context))), None)


def _read_lookup(text: str, context: Context) -> Question | None:
    for relation in context.relations.values():
        phrase = relation.phrase("{s}")
        forms = [
            form.replace("{phrase}", phrase).replace("{noun}", relation.noun) for form in ask.lookup_forms(relation)
        ]
        for fields in _matches(forms, text):
            if fact := _single(context, fields["s"], relation.noun):
                return ask.lookup(text, fact)
    return None


def _read_reverse(text: str, context: Context) -> Question | None:
    for relation in context.relations.values():
        forms = [form.replace("{noun}", relation.noun) for form in ask.reverse_forms(relation)]
        for fields in _matches(forms, text):
            fact = _holder(context, relation.noun, fields["v"])
            if fact and fields.get("kind", context.kind_of[fact.subject]) == context.kind_of[fact.subject]:
                return ask.reverse(text, context, fact)
    return None


def _holder(context: Context, noun: str, value: str) -> Fact | None:
    """The one fact with this value, if just one subject has it."""
    facts = [fact for fact in context.reversible if fact.relation.noun == noun and fact.value == value]
    return facts[0] if len(facts) == 1 else None


def _read_choice(text: str, context: Context) -> Question | None:
    head, *lines = text.split("\n")
    options = [line.rpartition(" (")[0] for line in lines]
    expected = [ask.option(letter, value) for letter, value in zip(ask.LETTERS, options, strict=False)]
    if lines != expected or len(lines) != len(ask.LETTERS) or len(set(options)) != len(options):
        return None
    question = _read_lookup(head, context)
    if question is None or question.gold[0] not in options:
        return None
    return ask.multiple_choice(text, options, question.needs[0])


def _read_two_hop(text: str, context: Context) -> Question | None:
    for fields in _matches(ask.TWO_HOP, text):
        for first in context.singles:
            leads = fields["inner"] == f"the {first.relation.phrase(first.subject)}"
            if leads and (second := _single(context, first.value, fields["noun"])):
                return ask.two_hop(text, context, first, second)
        for first in context.reversible:
            leads = fields["inner"] == ask.describe(context, first)
            if leads and (second := _single(context, first.subject, fields["noun"])):
                return ask.two_hop(text, context, first, second)
    return None


def _read_comparison(text: str, context: Context) -> Question | None:
    for fields in _matches(ask.COMPARISON, text):
        a, b = (_single(context, fields[key], fields["noun"]) for key in "ab")
        if not (a and b and a.relation.is_number):
            continue
        if ask.magnitude(a) != ask.magnitude(b):
            return ask.comparison(text, a, b)
    return None


def _read_count(text: str, context: Context) -> Question | None:
    for fields in _matches(ask.COUNT, text):
        for relation in context.relations.values():
            if relation.plural == fields["plural"] and (facts := context.by_key.get((fields["s"], relation.noun))):
                return ask.count(text, facts)
    return None


def _read_record(text: str, context: Context) -> Question | None:
    for fields in _matches(ask.RECORD, text):
        nouns = fields["nouns"].replace(" and ", ", ").split(", ")
        facts = [fact for noun in nouns if (fact := _single(context, fields["s"], noun))]
        if len(facts) == len(set(nouns)) == len(nouns) >= 2 and fields["format"] in ("JSON", "YAML"):
            return ask.record(text, fields["format"], facts)
    return None


def _read_about(text: str, context: Context) -> Question | None:
    """A summary or a rhyme about a subject."""
    for fields in _matches(ask.SUMMARY, text):
        if fields["s"] in context.by_subject:
            return ask.summary(text, context, fields["s"])
    for fields in _matches(ask.CREATIVE, text):
        if fields["s"] in context.by_subject:
            return ask.creative(text, context, fields["s"])
    return None


def _read_translation(text: str, context: Context) -> Question | None:
    grammar = context.grammar
    if grammar is None:
        return None
    for fields in _matches(ask.TRANSLATION, text):
        clause = parse_clause(fields["clause"])
        if clause and fields["language"] == grammar.language and context.by_subject.keys() >= {*clause.words}:
            return ask.translation(text, context, grammar, clause)
    return None


READINGS = (
    _read_choice,
    _read_comparison,
    _read_count,
    _read_record,
    _read_about,
    _read_translation,
    _read_two_hop,
    _read_lookup,
    _read_reverse,
)
